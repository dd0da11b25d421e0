"""torch.compile: whether it can work here, and the way back for a module on which it fails."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Dynamo and Inductor take longer to import than torch itself: only functions that need them import them.


def compiler_missing(device: torch.device) -> str | None:
    """The reason why torch.compile cannot work on `device`; None if it can.

    The CPU backend writes C++ that includes Python.h; the GPU backend is Triton, whose launchers are C. The
    variables CXX and CC name another compiler.
    """
    if device.type == "cuda":
        if not importlib.util.find_spec("triton"):
            return "Triton is not installed"
        if torch.version.hip is None and torch.cuda.get_device_capability(device) < (7, 0):
            return "Triton needs a GPU of compute capability 7.0 or newer"
        names, language = [cc] if (cc := os.environ.get("CC")) else ["gcc", "clang"], "C"  # as Triton
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
    """Compiles calls of `module`. Where compilation fails, calls `report` and runs the module uncompiled.

    A failure comes before anything is computed or after a graph of the module has run, which then runs again.
    Where that graph may contain communication with other ranks, `report` has to raise.
    """
    from torch._dynamo.exc import TorchDynamoException

    # It warns against in-place operations under activation checkpointing. There are none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)

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
    """Graph breaks of torch.compile so far: first line of the reason -> count."""
    from torch._dynamo.utils import counters

    found: dict[str, int] = {}
    for reason, count in counters["graph_break"].items():
        line = str(reason).strip().partition("\n")[0]
        found[line] = found.get(line, 0) + count
    return found
