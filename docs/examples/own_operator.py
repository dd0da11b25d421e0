"""A form of an operator of one's own: an RMS norm whose backward pass is written by hand.

In the configuration: `plugins: [own_operator]` and `kernels: {operators: {norm: by-hand}}`. A form computes
the same function as PyTorch's (`llmkit/kernels/norm.py`), another way: here it keeps the input and one
number a row, where autograd would keep several tensors of its size. Functions of the operator that it does
not define remain PyTorch's.
"""

from typing import Any

import torch
from torch import Tensor

import llmkit


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        dy, normed = gradients[0].float(), x.float() * scale
        inner = dy * weight.float()
        dx = scale * (inner - normed * (inner * normed).mean(-1, keepdim=True))
        return dx.to(x.dtype), (dy * normed).flatten(0, -2).sum(0).to(weight.dtype), None


@llmkit.register("operator", "by-hand")
class ByHand:
    """An RMS norm with a backward pass of its own."""

    operator = "norm"

    @staticmethod
    def refuses(situation: Any) -> str | None:
        """Why it cannot serve a run; None where it can."""
        shape = situation.shape  # None where the model is none of llmkit's
        return "it has no layer norm" if shape is not None and shape.norm == "layernorm" else None

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """See llmkit.kernels.norm.rms_norm."""
        normed: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
        return normed

    @staticmethod
    def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of a sum, and that sum."""
        total = x + branch
        return total, ByHand.rms_norm(total, weight, eps)
