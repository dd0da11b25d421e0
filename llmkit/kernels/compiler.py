"""torch.compile: whether it can work here, and the way back for a module on which it fails."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import shutil
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmkit.config.operators import FUNCTIONS
from llmkit.kernels.operators import PLAIN, Operators, replace_functions

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


POINTWISE = ("norm", "rotation", "activation", "dropout_add")
"""Operators that gain by being compiled even alone: each is several passes over its input otherwise."""
Backend = str | Callable[..., Any]


def compile_module(module: nn.Module, report: Callable[[str], None], backend: Backend = "inductor") -> None:
    """Compiles calls of `module`. Where compilation fails, calls `report` and runs the module uncompiled.

    A failure comes before anything is computed or after a graph of the module has run, which then runs again.
    Where that graph may contain communication with other ranks, `report` has to raise.
    """
    call = compile_function(module._call_impl, report, backend, type(module).__name__)
    module._compiled_call_impl = call  # what nn.Module.compile would set, without our way back


def compile_function(
    function: Callable[..., Any],
    report: Callable[[str], None],
    backend: Backend = "inductor",
    name: str | None = None,
) -> Callable[..., Any]:
    """`function`, compiled when it is first called; uncompiled, after `report`, where that fails."""
    import torch._functorch.config
    from torch._dynamo.exc import TorchDynamoException

    # Else the backward pass is compiled when it first runs, and a failure leaves half of the gradients.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    # It warns against in-place operations under activation checkpointing. There are none.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)

    used = compiled = torch.compile(function, dynamic=False, backend=backend)

    def call(*arguments: Any, **options: Any) -> Any:
        """The compiled function until it has failed, and `function` itself from then on."""
        nonlocal used
        try:
            return used(*arguments, **options)
        except TorchDynamoException as error:
            if used is not compiled:
                raise
            what = name or function.__name__
            report(f"torch.compile failed on {what}, which runs without it: {reason_of(error, lines=2)}")
            used = function
        return used(*arguments, **options)

    return call


def each_once(report: Callable[[str], None]) -> Callable[[str], None]:
    """`report`, but for messages that it has had before: all layers fail to compile for the same reason."""
    reported = set[str]()

    def call(message: str) -> None:
        if message not in reported:
            reported.add(message)
            report(message)

    return call


def reason_of(error: Exception, lines: int = 1) -> str:
    """The first lines of what has failed, as one; of a C++ compiler's output the first complaint."""
    text = str(error).strip()
    said = " ".join(text.split("\n")[:lines]).strip()
    output = text.partition("\nOutput:\n")[2].splitlines()
    complaint = next((line.strip() for line in output if "error" in line or "No space" in line), "")
    return f"{said}: {complaint}" if complaint else said


def compile_pointwise(
    model: nn.Module,
    operators: Operators,
    report: Callable[[str], None],
    backend: Backend = "inductor",
) -> None:
    """Compiles the functions of `operators` in plain PyTorch that modules of `model` call.

    For modules that cannot be compiled themselves. Each function becomes a graph for each shape.
    """
    chosen = [name for name in POINTWISE if operators.forms[name] == PLAIN[name]]
    names = [function for operator in chosen for function in FUNCTIONS[operator]]
    compiled: dict[str, Any] = {
        name: compile_function(getattr(operators, name), report, backend) for name in names
    }
    replace_functions(model, operators, dataclasses.replace(operators, **compiled))


def run_uncompiled(model: nn.Module) -> None:
    """Takes back what `compile_module` has done to the modules of `model`."""
    for module in model.modules():
        module._compiled_call_impl = None


def raised_by_kernels(error: Exception, sends: bool) -> bool:
    """Whether code that torch.compile or Triton made has raised `error`: not the model, nor a lack of memory.

    sends: whether generated code may exchange tensors with other processes. What such an exchange raises is
    no fault of the code.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    files = [Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(error.__traceback__)]
    folders = ("_inductor", "triton")  # of PyTorch, of Triton, and our own that launches its kernels
    return any(folder in path.parts for path in (files[-1:] if sends else files) for folder in folders)


def graph_breaks() -> dict[str, int]:
    """Graph breaks of torch.compile so far: first line of the reason -> count."""
    from torch._dynamo.utils import counters

    found: dict[str, int] = {}
    for reason, count in counters["graph_break"].items():
        line = str(reason).strip().partition("\n")[0]
        found[line] = found.get(line, 0) + count
    return found


def graphs_compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
