"""Compiling Triton kernels for a GPU where none is, with the arguments of their launches."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch


class Code(NamedTuple):
    """A compiled kernel. spilled: bytes of registers in memory; load, store: bits of the widest access."""

    name: str
    registers: int
    spilled: int
    load: int
    store: int


class _Driver:
    """Of an H100 that launches nothing."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def _widest(kernel: Any, access: str) -> int:
    accesses = re.findall(rf"{access}\.global\S*?(?:\.v(\d))?\.b(\d+)", kernel.asm["ptx"])
    return max(int(vector or 1) * int(bits) for vector, bits in accesses)


@contextmanager
def compiled_for_h100(folder: Path) -> Iterator[list[Code]]:
    """Inside, launches of kernels (on CPU tensors) compile them and do nothing else; yields the kernels."""
    triton = pytest.importorskip("triton", reason="the extra `dev` brings it on Linux")
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    found: list[Code] = []
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        binary = folder / f"{len(found)}.cubin"
        binary.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run(
            [tool, "-res-usage", binary], capture_output=True, text=True, check=True
        ).stdout
        registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage)[0]
        found.append(
            Code(self.__name__, int(registers), int(stack), _widest(kernel, "ld"), _widest(kernel, "st"))
        )
        return kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", _Driver())
        yield found
