"""Whether torch.compile can work here, found out before it fails in the first step."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from pathlib import Path

import torch
import torch._inductor.config


def compiler_missing(device: torch.device) -> str | None:
    """Why torch.compile cannot work on `device`, or None if it can.

    The CPU backend writes C++ that includes Python.h; the GPU backend needs Triton.
    """
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "Triton is not installed"
    names = [name for name in torch._inductor.config.cpp.cxx if name]
    if not any(shutil.which(name) for name in names):
        return f"no C++ compiler is found (looked for {' and '.join(names)})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"{header} is missing"
