"""The pieces of tensors that a checkpoint consists of, and the geometry of boxes and flat ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import Tensor

from llmkit.parallel.slices import Box, Range, Shape, box_shape, box_size, check_box

EMA = "ema"
"""The kind of state of the moving average of the weights (`train.ema`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Some consecutive elements of a box of a full tensor.

    name: of the full tensor.
    kind: what is stored of it: "master" (fp32 weights), "exp_avg", "exp_avg_sq" (moments), "ema", ...
    shape: of the full tensor, vocabulary unpadded.
    box: the part of the full tensor that the piece lies in.
    range: which elements of the box, counted row by row.
    data: (range[1] - range[0],) those elements, on any device.
    """

    name: str
    kind: str
    shape: Shape
    box: Box
    range: Range
    data: Tensor

    def __post_init__(self) -> None:
        check_piece(self.shape, self.box, self.range)
        if self.data.dim() != 1 or len(self.data) != self.range[1] - self.range[0]:
            raise ValueError(f"{self.name}: range {self.range} of data of shape {tuple(self.data.shape)}")


def check_piece(shape: Shape, box: Box, within: Range) -> None:
    """Raise ValueError unless `within` is a non-empty range of a box that lies inside the shape."""
    check_box(shape, box)
    if not 0 <= within[0] < within[1] <= box_size(box):
        raise ValueError(f"range {within} does not lie inside box {box}")


@dataclass(frozen=True, slots=True)
class ContiguousBox:
    """A box that is contiguous in the row-major order of an enclosing box, where it begins at element
    `start`."""

    start: int
    box: Box

    def view(self, flat: Tensor, first: int, part: Box) -> Tensor:
        """The elements of `part`, a box inside this one, shaped like it.

        flat: (n,) elements of the enclosing box, of which `flat[0]` is number `first`.
        """
        mine = flat[self.start - first : self.start - first + box_size(self.box)].view(box_shape(self.box))
        bases = (lo for lo, _ in self.box)
        return mine[tuple(slice(lo - base, hi - base) for (lo, hi), base in zip(part, bases, strict=True))]


def runs(box: Box, within: Range) -> Iterator[ContiguousBox]:
    """Split a flat range of a box into contiguous boxes, in order: at most 2 * dimensions - 1 of them.

    A range that starts or ends inside a row is a partial row, some full rows, and a partial row; a partial
    row of a box of more dimensions is split recursively.
    """
    lo, hi = within
    if lo >= hi:
        return
    if not box:
        yield ContiguousBox(0, ())
        return
    base = box[0][0]
    row = prod(box_shape(box[1:]))
    first, last = -(-lo // row), hi // row
    if first > last:  # within one row, touching neither end
        yield from _in_row(box, last, lo, hi)
        return
    yield from _in_row(box, first - 1, lo, first * row)
    if first < last:
        yield ContiguousBox(first * row, ((base + first, base + last), *box[1:]))
    yield from _in_row(box, last, last * row, hi)


def _in_row(box: Box, index: int, lo: int, hi: int) -> Iterator[ContiguousBox]:
    """Contiguous boxes of the flat range [lo, hi) of the box, which lies in row `index`."""
    row = prod(box_shape(box[1:]))
    head = (box[0][0] + index, box[0][0] + index + 1)
    for run in runs(box[1:], (lo - index * row, hi - index * row)):
        yield ContiguousBox(index * row + run.start, (head, *run.box))


def intersect(a: Box, b: Box) -> Box | None:
    """The intersection of two boxes; None if it is empty."""
    both = tuple((max(p[0], q[0]), min(p[1], q[1])) for p, q in zip(a, b, strict=True))
    return both if all(lo < hi for lo, hi in both) else None


def subtract(a: Box, b: Box) -> list[Box]:
    """Disjoint boxes that together are `a` without `b`."""
    shared = intersect(a, b)
    if shared is None:
        return [a]
    rest: list[Box] = []
    for d, ((lo, hi), (inner_lo, inner_hi)) in enumerate(zip(a, shared, strict=True)):
        for side in ((lo, inner_lo), (inner_hi, hi)):
            if side[0] < side[1]:
                rest.append((*shared[:d], side, *a[d + 1 :]))
    return rest
