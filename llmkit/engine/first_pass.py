"""The first forward and backward pass of a process, in which generated kernels are first launched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from llmkit.errors import RunFault
from llmkit.kernels.compiler import raised_by_kernels, reason_of, run_uncompiled
from llmkit.kernels.operators import Operators, replace_functions
from llmkit.model.base import Model
from llmkit.model.vocabulary import Head

T = TypeVar("T")


class FirstPass:
    """Watches passes until a backward pass has gone well; after that it does nothing.

    Kernels that were compiled on this machine may fail when they are first launched, in the forward pass or,
    with gradients half-way, in the backward pass. A process alone then computes both again in plain PyTorch,
    and goes on so. One of several cannot: its peers may have received what it sent.

    model: calls the functions of `operators`. alone: whether there are no other processes, and nothing but
    `nn.Parameter.grad` keeps what a backward pass has computed. note: is called with what failed.
    """

    def __init__(
        self, model: Model, operators: Operators, alone: bool, note: Callable[[str], None] = print
    ) -> None:
        self.model, self.operators, self.alone, self.note = model, operators, alone, note
        self.proven = not model.compiled and not operators.generated

    def run(self, passes: Callable[[], T], with_backward: bool = True) -> T:
        """passes(), which begins by clearing what it adds to; with_backward: whether both passes are in it.

        Raises RunFault where a kernel has failed and there are other processes.
        """
        if self.proven:
            return passes()
        device = next(self.model.parameters()).device
        states = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        try:
            result = passes()
        except Exception as error:
            if not raised_by_kernels(error, sends=not self.alone):
                raise
            reason = _first_line(error)
            if not self.alone:
                raise RunFault(
                    f"a generated kernel failed in its first pass: {reason}. Set kernels.compile=false and "
                    "kernels.backend=torch"
                ) from error
        else:
            self.proven = with_backward
            return result
        self.note(f"a generated kernel failed; training goes on in plain PyTorch, not compiled: {reason}")
        self._use_plain_pytorch()
        torch.set_rng_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], device)
        return passes()

    def update(self, step: Callable[[], object]) -> None:
        """step(), which updates weights. Raises RunFault where a kernel of it fails: it cannot be undone."""
        try:
            step()
        except Exception as error:
            if not raised_by_kernels(error, sends=False):
                raise
            raise RunFault(
                f"a generated kernel failed in the update of the weights: {_first_line(error)}. Set "
                "kernels.operators.adamw=torch"
            ) from error

    def _use_plain_pytorch(self) -> None:
        self.proven = True
        run_uncompiled(self.model)
        for module in self.model.modules():
            if isinstance(module, Head):
                module.compiled = ""
        replace_functions(self.model, self.operators, self.operators.without_generated())
        for parameter in self.model.parameters():
            parameter.grad = None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"
