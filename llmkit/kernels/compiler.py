"""torch.compile: whether it can work here, and what becomes of a module on which it fails."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

# What torch.compile is made of takes longer to import than torch itself: only what compiles imports it.


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
        from torch._inductor.config import cpp

        names, language = [name for name in cpp.cxx if name], "C++"
    if not any(shutil.which(name) for name in names):
        return f"no {language} compiler is found (looked for {', '.join(names)})"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return None if header.exists() else f"{header} is missing"


def compile_module(
    module: nn.Module, report: Callable[[str], None], backend: str | Callable[..., Any] = "inductor"
) -> None:
    """torch.compile for calls of `module`; where that fails, `report` is told and they run as they are.

    A failure comes before anything of the module is computed, or after a whole part of it, which is then
    computed again. Where that part may have been a message to other ranks, `report` has to raise.
    """
    from torch._dynamo.exc import TorchDynamoException

    compiled = torch.compile(module._call_impl, dynamic=False, backend=backend)

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return compiled(*arguments, **options)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n")[:2])
            report(f"torch.compile failed on {type(module).__name__}, which runs without it: {reason}")
            module._compiled_call_impl = None
            return module(*arguments, **options)

    module._compiled_call_impl = call  # what nn.Module.compile would set, without our way back


def graph_breaks() -> dict[str, int]:
    """Where torch.compile had to leave what it was compiling: first line of the reason -> how often."""
    from torch._dynamo.utils import counters

    found: dict[str, int] = {}
    for reason, count in counters["graph_break"].items():
        line = str(reason).strip().partition("\n")[0]
        found[line] = found.get(line, 0) + count
    return found
