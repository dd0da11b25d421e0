"""Which elements of which full tensors a stored parameter holds.

A layout may cut a tensor across ranks (tensor parallelism), put several tensors into one matrix (a
fused q/k/v projection) or cut a parameter's storage anywhere (ZeRO). A `ParameterSlice` ties the stored
parameter to the full tensor that it is a part of, so that a checkpoint written under one layout can be
read under another.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]
Range = tuple[int, int]
"""From the first to behind the last: (lo, hi) stands for lo, lo + 1, ..., hi - 1."""
Box = tuple[Range, ...]
"""A range a dimension: the elements of a tensor whose every index lies in its dimension's range."""


def box_shape(box: Box) -> Shape:
    """The shape of the box taken by itself."""
    return tuple(hi - lo for lo, hi in box)


def box_size(box: Box) -> int:
    """How many elements the box holds (1 for the box of a scalar, which has no dimensions)."""
    return prod(hi - lo for lo, hi in box)


def full_box(shape: Shape) -> Box:
    """The box that holds all of a tensor of this shape."""
    return tuple((0, size) for size in shape)


def check_box(shape: Shape, box: Box) -> None:
    """Raise ValueError unless `box` lies inside a tensor of this shape. An empty box does."""
    if len(box) != len(shape):
        raise ValueError(f"box {box} has {len(box)} dimensions, the tensor of shape {shape} has {len(shape)}")
    for (lo, hi), size in zip(box, shape, strict=True):
        if not 0 <= lo <= hi <= size:
            raise ValueError(f"box {box} does not lie inside shape {shape}")


@dataclass(frozen=True, slots=True)
class ParameterSlice:
    """One named tensor inside a stored parameter.

    Rows [start, stop) of the stored parameter, each row whole, are the box `box` of the full tensor
    `name`. Rows that belong to no part (those that pad a vocabulary) are in no checkpoint. A parameter
    without dimensions counts as one row.

    name: of the full tensor, as in a model that is not cut and fuses nothing.
    shape: of the full tensor, vocabulary unpadded.
    box: where in the full tensor the rows lie; empty on a rank that holds only padding.
    """

    name: str
    shape: Shape
    box: Box
    start: int
    stop: int

    def __post_init__(self) -> None:
        check_box(self.shape, self.box)
        rows = box_shape(self.box)[0] if self.box else 1
        if self.start < 0 or self.stop - self.start != rows:
            raise ValueError(f"{self.name}: rows {self.start} to {self.stop} cannot hold box {self.box}")

    @property
    def offset(self) -> int:
        """Where in the parameter's flat storage the first element of the box lies."""
        return self.start * prod(box_shape(self.box)[1:])

    def overlap(self, flat_lo: int, flat_hi: int) -> Range | None:
        """The flat range of the box that lies in [flat_lo, flat_hi) of the parameter's flat storage.

        Element i of the box is element `offset + i` of the storage. None if they share nothing.
        """
        lo = max(flat_lo - self.offset, 0)
        hi = min(flat_hi - self.offset, box_size(self.box))
        return (lo, hi) if lo < hi else None


def full_slice(name: str, shape: Shape) -> ParameterSlice:
    """The part of a parameter that is the full tensor: nothing cut, nothing fused, nothing padded."""
    return ParameterSlice(name, shape, full_box(shape), 0, shape[0] if shape else 1)
