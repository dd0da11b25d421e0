"""Functions that launch kernels, as PyTorch's operators where it records what runs, else called directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.library import custom_op
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

Function = Callable[..., Any]


def recorded(x: torch.Tensor) -> bool:
    """Whether a call is recorded (by torch.compile, or by a mode such as that of selective checkpointing)."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or x.device.type == "meta"


class Operation:
    """`function` under the operator `llmkit::name`; its first argument is a tensor.

    Where nobody records it, it is called without PyTorch's dispatcher, which takes the host as long as two
    launches. fake: takes the same arguments and gives empty outputs.
    """

    def __init__(self, name: str, function: Function, fake: Function) -> None:
        self.function = function
        self.registered = custom_op(f"llmkit::{name}", function, mutates_args=())
        self.registered.register_fake(fake)

    def __call__(self, x: torch.Tensor, *arguments: Any) -> Any:
        """The outputs, without gradients."""
        return (self.registered if recorded(x) else self.function)(x, *arguments)

    def with_gradients(self, keep: Function, gradients: Function) -> Function:
        """The operation with a backward pass.

        keep(context, inputs, output) after the forward pass, gradients(context, *gradients of the outputs)
        as in `torch.autograd.Function`.
        """
        self.registered.register_autograd(gradients, setup_context=keep)

        def forward(ctx: Any, *arguments: Any) -> Any:  # one with `setup_context` costs twice as much
            output = self.function(*arguments)
            keep(ctx, arguments, output)
            return output

        methods = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(gradients))}
        direct: Any = type("Direct", (torch.autograd.Function,), methods)

        def call(x: torch.Tensor, *arguments: Any) -> Any:
            return (self.registered if recorded(x) else direct.apply)(x, *arguments)

        return call
