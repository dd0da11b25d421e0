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

    The CPU backend writes C++ that includes Python.h; the GPU backend is Triton, whose launchers are C.
    """
    if device.type == "cuda":
        if not importlib.util.find_spec("triton"):
            return "Triton is not installed"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
            return "Triton needs a GPU of compute capability 7.0 or newer"
        names, language = ["gcc", "clang", "cc"], "C"
    else:
        names, language = [name for name in torch._inductor.config.cpp.cxx if name], "C++"
    if not any(shutil.which(name) for name in names):
        return f"no {language} compiler is found (looked for {', '.join(names)})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"{header} is missing"
