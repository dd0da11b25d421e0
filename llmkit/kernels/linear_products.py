"""The three matrix products of a linear layer, in the forms that are not PyTorch's own, and between ranks.

In a column-parallel layer the sum over the ranks of the input's gradient is started before the weight's
gradient is computed, and waited for after it (Shoeybi et al. 2019, Megatron-LM). On a GPU the collective runs
on a stream of its own. Both gradients are one operator to torch.compile: Inductor, which orders what it sees
by its own rules, often waits for a sum before the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmkit.parallel.collectives import Group, start_all_gather, start_sum, wait


class Products(Protocol):
    """The products of a form. x: (..., inputs), weight: (outputs, inputs), bias: (outputs,)."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x weight' + bias, (..., outputs), and what is kept for the backward pass."""
        ...

    def operands(
        self, gradient: Tensor, kept: Sequence[Tensor], for_x: bool, for_weight: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What `of_x` and `of_weight` multiply, each empty where it is not wanted; gradient: (rows, outputs).

        Whatever is done to the operands element by element is done here, where torch.compile can fuse it.
        """
        ...

    def of_x(self, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """(rows, inputs): gradient weight."""
        ...

    def of_weight(self, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """(outputs, inputs): gradient' x."""
        ...


class TorchProducts:
    """See `Products`: those of PyTorch."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Products.output`."""
        return F.linear(x, weight, bias), (x, weight)

    def operands(
        self, gradient: Tensor, kept: Sequence[Tensor], for_x: bool, for_weight: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `Products.operands`."""
        x, weight = kept
        for_weights = [gradient, x.reshape(-1, x.shape[-1])] if for_weight else []
        return [gradient, weight] if for_x else [], for_weights

    def of_x(self, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """See `Products.of_x`."""
        gradient, weight = operands
        return gradient @ weight

    def of_weight(self, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """See `Products.of_weight`."""
        gradient, x = operands
        return gradient.mT @ x


PRODUCTS: dict[str, Products] = {"torch": TorchProducts()}
"""By the form's name: a name can be an argument of a custom operator. Further forms add their own."""


@torch.library.custom_op("llmkit::column_linear_gradients", mutates_args=())
def _gradients(
    for_x: Sequence[Tensor], for_weight: Sequence[Tensor], x_shape: Sequence[int],
    weight_shape: Sequence[int], dtype: torch.dtype, form: str, pieces: int, group: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of x, summed over the ranks, and of the weight. The first two: `Products.operands`."""
    products = PRODUCTS[form]
    summing = start_sum(products.of_x(for_x, dtype).view(x_shape), pieces, group)
    of_weight = products.of_weight(for_weight, dtype)
    return wait(summing), of_weight


@_gradients.register_fake
def _(
    for_x: Sequence[Tensor], for_weight: Sequence[Tensor], x_shape: Sequence[int],
    weight_shape: Sequence[int], dtype: torch.dtype, form: str, pieces: int, group: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    length = x_shape[0] // pieces if pieces else x_shape[0]
    like = for_x[0]
    return like.new_empty([length, *x_shape[1:]], dtype=dtype), like.new_empty(weight_shape, dtype=dtype)


class _Linear(torch.autograd.Function):
    """x weight' + bias. group: whose ranks have parts of the weight; "" = none. pieces: see `start_sum`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, form: str, pieces: int, group: str
    ) -> Tensor:
        """The output; keeps what the form's backward pass needs, of the gathered x."""
        if pieces:
            x = wait(start_all_gather(x, pieces, group))
        y, kept = PRODUCTS[form].output(x, weight, bias)
        needs_weight = ctx.needs_input_grad[1]  # else the input itself, gathered, need not be kept
        ctx.save_for_backward(*(each if needs_weight or each is not x else None for each in kept))
        ctx.shapes, ctx.how = (x.shape, weight.shape), (form, pieces, group)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Between ranks both products are one operator, if both are needed."""
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        (form, pieces, group), dtype = ctx.how, gradients[0].dtype
        products, rows = PRODUCTS[form], gradients[0].reshape(-1, gradients[0].shape[-1])
        for_x, for_weight = products.operands(rows, ctx.saved_tensors, needs_x, needs_weight)
        of_x = of_weight = None
        if group and needs_x and needs_weight:
            of_x, of_weight = _gradients(for_x, for_weight, *ctx.shapes, dtype, form, pieces, group)
        elif needs_x:
            of_x = products.of_x(for_x, dtype).view(ctx.shapes[0])
            of_x = wait(start_sum(of_x, pieces, group)) if group else of_x
        if needs_weight and of_weight is None:
            of_weight = products.of_weight(for_weight, dtype)
        return of_x, of_weight, rows.sum(0) if needs_bias else None, None, None, None


def product_linear(x: Tensor, weight: Tensor, bias: Tensor | None, form: str) -> Tensor:
    """See `llmkit.kernels.linear.linear`; by the products of this form."""
    return _Linear.apply(x, weight, bias, form, 0, "")  # type: ignore[no-untyped-call]


def column_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, group: Group, *, pieces: bool = False, form: str = "torch"
) -> Tensor:
    """x: (..., inputs), held by all ranks of the group -> (..., outputs / ranks), x weight' + bias.

    weight: (outputs / ranks, inputs), bias: (outputs / ranks,): this rank's. pieces: x is this rank's piece
    along dimension 0, and the product is that of all pieces. The gradient of x is the sum over the ranks, or
    this rank's piece of it. The input of the product is kept for the backward pass, gathered if it had to be.
    form: whose `PRODUCTS` are used.
    """
    assert group is not None
    return _Linear.apply(x, weight, bias, form, pieces * group.size(), group.group_name)  # type: ignore[no-untyped-call]
