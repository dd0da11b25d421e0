"""Tensors in slabs of rows, so that one of any size can be worked on in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from llmkit.parallel.slices import Box, Shape, full_box

ELEMENTS = 2**20
"""Elements of a slab at most, unless a row has more: those of a block in fp32."""


def slabs(shape: Shape, elements: int = ELEMENTS) -> Iterator[tuple[slice, Box]]:
    """Boxes of rows that together are the tensor, each with its elements among those of the whole tensor."""
    if not shape:
        yield slice(0, 1), ()
        return
    row = prod(shape[1:])
    rows = max(1, elements // max(row, 1))
    for first in range(0, shape[0], rows):
        end = min(first + rows, shape[0])
        yield slice(first * row, end * row), ((first, end), *full_box(shape[1:]))
