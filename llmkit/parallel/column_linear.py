"""The arithmetic of a column-parallel linear layer, whose backward pass communicates beside a matrix product.

The sum over the ranks of the input's gradient is started before the weight's gradient is computed, and waited
for after it (Shoeybi et al. 2019, Megatron-LM). On a GPU the collective runs on a stream of its own. It is
made of PyTorch's functional collectives, so that torch.compile traces it; Inductor keeps this order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.parallel.collectives import (
    Group,
    start_all_gather,
    start_all_reduce,
    start_reduce_scatter,
    wait,
)


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
        x, weight = ctx.saved_tensors
        pieces, group = ctx.how
        for_x, for_weight, for_bias, _, _ = ctx.needs_input_grad
        rows = gradients[0].flatten(0, -2)
        of_x = of_weight = of_bias = None
        if for_x:
            of_x = (rows @ weight).view(x.shape)
            if pieces:
                of_x = start_reduce_scatter(of_x, pieces, group)
            else:
                of_x = start_all_reduce(of_x, "sum", group)
        if for_weight:
            of_weight = rows.mT @ x.flatten(0, -2)
        if for_bias:
            of_bias = rows.sum(0)
        return None if of_x is None else wait(of_x), of_weight, of_bias, None, None


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
