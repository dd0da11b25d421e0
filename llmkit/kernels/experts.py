"""Products of tokens with the weights of the experts that they are sent to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 16
"""Bytes of which a multiple is between the rows of what PyTorch's grouped product takes."""


class Dispatch(NamedTuple):
    """How copies of tokens lie grouped by expert. With k experts a token, copy n is of token n // k.

    order: (copies,) int64, the copy at each position. inverse: (copies,) int64, the position of each copy.
    ends: (experts,) int32, where the copies of each expert end.
    """

    order: Tensor
    inverse: Tensor
    ends: Tensor

    @classmethod
    def of(cls, chosen: Tensor, experts: int) -> Dispatch:
        """chosen: (tokens, k) int64, the experts of each token. Nothing waits for the device.

        Two tokens and three experts: [[2, 0], [2, 1]] gives the order [1, 3, 0, 2] (copy 1, of token 0, is
        the only one of expert 0), the inverse [2, 0, 3, 1] and the ends [1, 2, 4].
        """
        ordered, order = torch.sort(chosen.flatten(), stable=True)
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        numbers = torch.arange(experts, device=order.device)
        ends = torch.searchsorted(ordered, numbers, right=True, out_int32=True)
        return cls(order, inverse, ends)


def scatter_to_experts(x: Tensor, dispatch: Dispatch, k: int) -> Tensor:
    """x: (tokens, width) -> its k copies, (tokens * k, width), grouped by expert."""
    return _Scatter.apply(x, dispatch.order, dispatch.inverse, k)  # type: ignore[no-untyped-call]


def gather_from_experts(y: Tensor, dispatch: Dispatch, weights: Tensor) -> Tensor:
    """The weighted sum of what the experts give for a token, added up in the order of the token's choices.

    y: (tokens * k, width), grouped by expert. weights: (tokens, k). -> (tokens, width), of the type of y.
    """
    copies = permute(y, dispatch.inverse, dispatch.order).view(*weights.shape, y.shape[-1])
    return torch.einsum("tkw,tk->tw", copies, weights.to(y.dtype))


def permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """The rows of x in another order; inverse: of the order. x: (rows, width) -> the same shape."""
    return _Permute.apply(x, order, inverse)  # type: ignore[no-untyped-call]


class _Scatter(torch.autograd.Function):
    """The gradient of a token is the sum of those of its copies, in their order: no atomic additions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.k = k
        return x[order // k]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        tokens = len(inverse) // ctx.k
        return gradients[0][inverse].unflatten(0, (tokens, ctx.k)).sum(1), None, None, None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return y[order]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        return gradients[0][inverse], None, None


@torch.library.custom_op("llmkit::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Each group of rows times the weight of its expert.

    x: (rows, inputs); weight: (experts, outputs, inputs), maybe transposed in memory; ends: (experts,) int32,
    where each group ends. -> (rows, outputs). PyTorch's grouped product takes rows of a multiple of 16 bytes;
    with others there is a product for each expert, for which a GPU's host has to wait. PyTorch does the same
    where its kernel does not serve: in fp32, and on GPUs other than Hopper and B200 or B300. An operation of
    its own for torch.compile, which in PyTorch 2.13 takes grouped products in bf16 alone.
    """
    if _are_aligned(x, weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    return separate_linears(x, weight, ends)


@torch.library.custom_op("llmkit::grouped_weight_gradient", mutates_args=())
def grouped_weight_gradient(gradient: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """Of `grouped_linear`; gradient: (rows, outputs) of its result -> (experts, outputs, inputs)."""
    if _are_aligned(x, gradient):
        found = F.grouped_mm(gradient.t(), x, offs=ends)
        return found if _sets_empty_groups(found.device) else _without_empty_groups(found, ends)
    found = gradient.new_empty(len(ends), gradient.shape[1], x.shape[1])
    first = 0
    for expert, end in enumerate(ends.tolist()):
        torch.mm(gradient[first:end].t(), x[first:end], out=found[expert])
        first = end
    return found


@grouped_linear.register_fake
def _(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_weight_gradient.register_fake
def _(gradient: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], gradient.shape[1], x.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    """Keeps what the gradients that are needed are made of: of frozen experts no inputs."""
    x, weight, ends = inputs
    of_x, of_weight = ctx.needs_input_grad[:2]  # here PyTorch adds an entry of its own
    ctx.save_for_backward(x if of_weight else None, weight if of_x else None, ends)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    gradient = gradient.contiguous()
    of_x, of_weight, _ = ctx.needs_input_grad
    return (
        grouped_linear(gradient, weight.transpose(1, 2), ends) if of_x else None,
        grouped_weight_gradient(gradient, x, ends) if of_weight else None,
        None,
    )


grouped_linear.register_autograd(_gradients, setup_context=_keep)


def _sets_empty_groups(device: torch.device) -> bool:
    """Whether the product of an expert without tokens is zero.

    On Blackwell it may be what the kernel had in its registers (pytorch/pytorch#172439, NVIDIA/cutlass#2674).
    """
    return device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 10


def _without_empty_groups(found: Tensor, ends: Tensor) -> Tensor:
    """found: (experts, ...), with zeros for experts without tokens. Nothing waits for the device."""
    tokens = torch.diff(ends, prepend=ends.new_zeros(1))
    return found.masked_fill_((tokens == 0).view(-1, *[1] * (found.dim() - 1)), 0)


def _are_aligned(*matrices: Tensor) -> bool:
    """Whether the rows of these, and of the transposed weights of experts, are of a multiple of 16 bytes."""
    widths = [each.shape[-1] for each in matrices] + [each.shape[1] for each in matrices if each.dim() == 3]
    return all(width * matrices[0].element_size() % ALIGNMENT == 0 for width in widths)


def separate_linears(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """What `grouped_linear` computes, expert by expert."""
    first, outputs = 0, []
    for expert, end in enumerate(ends.tolist()):
        outputs.append(F.linear(x[first:end], weight[expert]))
        first = end
    return torch.cat(outputs)
