"""Loads the C++ kernels of this folder."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, cast


def load(name: str) -> ctypes.CDLL:
    """The library of a source file, compiled where torch.compile's own code is, by the same compiler."""
    from torch._inductor.codecache import CppCodeCache

    folder = Path(__file__).parent
    source = "".join((folder / each).read_text(encoding="utf-8") for each in ("tiles.h", name))
    return cast(ctypes.CDLL, CppCodeCache.load(source))


def enough_memory(missing: int, function: Any, arguments: tuple[Any, ...]) -> None:
    """`errcheck` of a kernel that returns whether memory was missing. Raises MemoryError where it was."""
    if missing:
        raise MemoryError(
            f"there was not enough memory for the buffers of the kernel {function.__name__}; use a smaller "
            "train.micro_batch_size, or fewer threads (OMP_NUM_THREADS), each of which has buffers of its own"
        )
