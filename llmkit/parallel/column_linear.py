"""The arithmetic of a column-parallel linear layer, whose backward pass communicates beside a matrix product.

The sum over the ranks of the input's gradient is started before the weight's gradient is computed, and waited
for after it (Shoeybi et al. 2019, Megatron-LM). On a GPU the collective runs on a stream of its own. Both
gradients are one operator to torch.compile: Inductor, which orders what it sees by its own rules, often waits
for a sum before the product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.parallel.collectives import (
    Group,
    start_all_gather,
    start_all_reduce_,
    start_reduce_scatter,
    wait,
)


def _start_sum(of_x: Tensor, pieces: int, group: str) -> Tensor:
    """Starts the sum of a gradient that nobody else reads, or of this rank's piece of it."""
    if pieces:
        return start_reduce_scatter(of_x, pieces, group)
    return start_all_reduce_(of_x, "sum", group)


@torch.library.custom_op("llmkit::column_linear_gradients", mutates_args=())
def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, pieces: int, group: str) -> tuple[Tensor, Tensor]:
    """The gradients of x, summed over the ranks, and of the weight.

    gradient: (length, ..., outputs), x: (length, ..., inputs), weight: (outputs, inputs).
    """
    rows = gradient.flatten(0, -2)
    summing = _start_sum((rows @ weight).view(x.shape), pieces, group)
    of_weight = rows.mT @ x.flatten(0, -2)
    return wait(summing), of_weight


@_gradients.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, pieces: int, group: str) -> tuple[Tensor, Tensor]:
    length = x.shape[0] // pieces if pieces else x.shape[0]
    return x.new_empty(length, *x.shape[1:]), torch.empty_like(weight)


class _ColumnLinear(torch.autograd.Function):
    """x weight' + bias; pieces: the size of the group where each rank holds a piece of x, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pieces: int, group: str) -> Tensor:
        if pieces:
            x = wait(start_all_gather(x, pieces, group))
        ctx.save_for_backward(x, weight)
        ctx.how = (pieces, group)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (gradient,) = ctx.saved_tensors, gradients
        for_x, for_weight, for_bias, _, _ = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        of_x = of_weight = None
        if for_x and for_weight:
            of_x, of_weight = _gradients(gradient, x, weight, *ctx.how)
        elif for_x:
            of_x = wait(_start_sum((rows @ weight).view(x.shape), *ctx.how))
        elif for_weight:
            of_weight = rows.mT @ x.flatten(0, -2)
        return of_x, of_weight, rows.sum(0) if for_bias else None, None, None


def column_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: Group, *, pieces: bool = False
) -> Tensor:
    """x: (..., inputs), held by all ranks of the group -> (..., outputs / ranks), x weight' + bias.

    weight: (outputs / ranks, inputs), bias: (outputs / ranks,): this rank's. pieces: x is this rank's piece
    along dimension 0, and the product is that of all pieces. The gradient of x is the sum over the ranks, or
    this rank's piece of it. The input of the product is kept for the backward pass, gathered if it had to be.
    """
    assert group is not None
    return _ColumnLinear.apply(x, weight, bias, pieces * group.size(), group.group_name)  # type: ignore[no-untyped-call]
