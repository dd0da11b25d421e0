"""The parts of a projection's output, whose gradients need not be copied together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def split(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """x.split(widths, -1): views of x, (..., width) each.

    Where a kernel has written the parts' gradients side by side, as those of x would lie, they are its
    gradient; PyTorch's split copies them. torch.compile writes them in place by itself.
    """
    if len(widths) == 1:
        return (x,)
    if torch.compiler.is_compiling():
        return x.split(list(widths), -1)
    parts: tuple[Tensor, ...] = _Split.apply(x, widths)  # type: ignore[no-untyped-call]
    return parts


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
        return x.split(list(widths), -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        whole = side_by_side(gradients)
        return torch.cat(gradients, -1) if whole is None else whole, None


def side_by_side(parts: Sequence[Tensor]) -> Tensor | None:
    """The tensor whose consecutive columns the parts are, without a copy; None where they are not."""
    first, start = parts[0], parts[0].storage_offset()
    width = sum(part.shape[-1] for part in parts)
    if first.stride(-1) != 1 or first.dim() < 2 or min(first.stride()[:-1]) < width:
        return None
    for part in parts:
        same = part.dtype == first.dtype and part.stride() == first.stride()
        if (
            not same
            or part.storage_offset() != start
            or part.untyped_storage()._cdata != first.untyped_storage()._cdata
        ):
            return None
        start += part.shape[-1]
    return first.as_strided((*first.shape[:-1], width), first.stride())
