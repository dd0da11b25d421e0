"""Shapes of launches: how tensors are divided among the programs of a kernel.

The sizes are heuristics for memory-bound kernels: a program holds a tile of some thousand elements, so that
enough loads are under way, in few enough registers that several programs share a multiprocessor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Elements that a program holds at a time, at least where a tensor has as many."""
PROGRAMS_PER_MULTIPROCESSOR = 2
"""Of kernels that keep sums over rows: each program writes its sums once."""


def arithmetic(*tensors: Tensor) -> Any:
    """The type in which a kernel computes: fp64 if a tensor is fp64, else fp32."""
    return tl.float64 if any(each.dtype == torch.float64 for each in tensors) else tl.float32


def require_shape(what: str, tensor: Tensor | None, *shape: int) -> None:
    """Raises ValueError where a tensor has another shape: a kernel would read what lies behind it."""
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{what} has the shape {tuple(tensor.shape)}, not {shape}")


class Rows(NamedTuple):
    """Where the rows of a tensor (..., size) begin: r at (r // inner) * outer_stride + (r % inner) * stride.

    tensor: has its last dimension contiguous; a view such as the keys among the outputs of one projection
    is used as it is.
    """

    tensor: Tensor
    inner: int
    outer_stride: int
    stride: int

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """The rows of x, or of a contiguous copy where two strides do not describe it."""
        sizes, strides = x.shape[:-1], x.stride()[:-1]
        dims = [(size, stride) for size, stride in zip(sizes, strides) if size != 1]
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            return cls.of(x.contiguous())
        merged: list[tuple[int, int]] = []  # neighbouring dimensions that one stride describes
        for size, stride in dims:
            if merged and merged[-1][1] == size * stride:
                merged[-1] = (merged[-1][0] * size, stride)
            else:
                merged.append((size, stride))
        if len(merged) > 2:
            return cls.of(x.contiguous())
        if len(merged) == 2:
            return cls(x, merged[1][0], merged[0][1], merged[1][1])
        return cls(x, 1, merged[0][1] if merged else 0, 0)


@triton.jit
def row_offset(row, inner, outer_stride, stride):
    """In a kernel: where these rows of a tensor begin, in elements; the rest as in `Rows`."""
    return (row // inner) * outer_stride + (row % inner) * stride


def in_memory_order(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function with batch and sequence exchanged where x (batch, seq, ...) lies in memory the other way.

    The result then lies as x does, as that of PyTorch's own pointwise operators: nothing is copied.
    """

    @wraps(function)
    def ordered(x: Tensor, *others: Any) -> Tensor:
        if x.dim() < 3 or 1 in x.shape[:2] or x.stride(0) >= x.stride(1):
            return function(x, *others)
        exchanged = [
            other.transpose(0, 1) if isinstance(other, Tensor) and other.dim() == x.dim() else other
            for other in others
        ]
        return function(x.transpose(0, 1), *exchanged).transpose(0, 1)

    return ordered


class Tile(NamedTuple):
    """Rows x columns of a tensor, powers of two, that a program holds at a time, and the warps that do."""

    rows: int
    columns: int
    warps: int

    @classmethod
    def of(cls, columns: int, rows: int) -> Tile:
        """A tile with all `columns` of as many of the `rows` as fit into its size."""
        width = triton.next_power_of_2(max(columns, 1))
        height = max(1, min(TILE // width, triton.next_power_of_2(max(rows, 1))))
        return cls(height, width, min(16, max(1, width * height // 512)))


def resident_programs(device: torch.device, blocks: int) -> int:
    """Programs that together go through `blocks` of rows, each through several; at least one."""
    if device.type != "cuda":
        return max(1, min(blocks, 3))
    there = torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(blocks, there * PROGRAMS_PER_MULTIPROCESSOR))
