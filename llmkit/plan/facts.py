"""What a plan must know of the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DeviceFacts:
    """What a plan must know of the device that each process trains on.

    has_bf16_units: whether it multiplies bf16 matrices in hardware. free_bytes: of a GPU's memory, the least
    of all ranks; not used for a CPU. compiler_missing: why torch.compile cannot work here; None where it
    can, or was not asked for. capability: of a GPU of NVIDIA's, else None. triton: whether Triton kernels can
    run (on a CPU: in its interpreter). avx512_bf16: whether that is the fastest unit for bf16 of a CPU.
    varlen: whether PyTorch has attention of variable length with windows, for a GPU. flash: the forms of
    flash attention by other packages that are installed and that PyTorch can call. nf4_missing: why weights
    cannot be kept in 4 bits; None where they can.
    """

    kind: Literal["cpu", "cuda"] = "cpu"
    has_bf16_units: bool = False
    free_bytes: int = 0
    compiler_missing: str | None = None
    capability: tuple[int, int] | None = None
    triton: bool = False
    avx512_bf16: bool = False
    varlen: bool = False
    flash: frozenset[str] = frozenset()
    nf4_missing: str | None = None
