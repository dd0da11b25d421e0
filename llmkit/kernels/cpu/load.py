"""Loads the C++ kernels of this folder."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import cast


def load(name: str) -> ctypes.CDLL:
    """The library of a source file, compiled where torch.compile's own code is, by the same compiler."""
    from torch._inductor.codecache import CppCodeCache

    folder = Path(__file__).parent
    source = "".join((folder / each).read_text(encoding="utf-8") for each in ("tiles.h", name))
    return cast(ctypes.CDLL, CppCodeCache.load(source))
