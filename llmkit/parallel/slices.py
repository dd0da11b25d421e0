"""Which elements of which full tensors a stored parameter holds.

A rank may store a part of a tensor (tensor parallelism), several tensors in one matrix (a fused q/k/v
projection) or any range of a parameter's storage (ZeRO). A `ParameterSlice` names the full tensor and the
elements of it, so that a checkpoint written under one layout can be read under another.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

Shape = tuple[int, ...]
Range = tuple[int, int]
"""Half-open: (lo, hi) stands for lo, lo + 1, ..., hi - 1."""
Box = tuple[Range, ...]
"""A range for each dimension: the elements whose indices all lie in the range of their dimension."""


def box_shape(box: Box) -> Shape:
    """The shape of a tensor of the box's elements alone."""
    return tuple(hi - lo for lo, hi in box)


def box_size(box: Box) -> int:
    """Number of elements in the box; 1 for a scalar's, which has no dimensions."""
    return prod(hi - lo for lo, hi in box)


def full_box(shape: Shape) -> Box:
    """The box that holds all of a tensor of this shape."""
    return tuple((0, size) for size in shape)


def check_box(shape: Shape, box: Box) -> None:
    """Raises ValueError unless `box` lies inside a tensor of this shape; an empty box does."""
    if len(box) != len(shape):
        raise ValueError(f"box {box} has {len(box)} dimensions, the tensor of shape {shape} has {len(shape)}")
    for (lo, hi), size in zip(box, shape, strict=True):
        if not 0 <= lo <= hi <= size:
            raise ValueError(f"box {box} does not lie inside shape {shape}")


@dataclass(frozen=True, slots=True)
class ParameterSlice:
    """A region of one full tensor inside a stored parameter.

    Rows start .. stop - 1 of the stored parameter are the elements `box` of the full tensor `name`. Rows in
    no slice (the padding of a vocabulary) are in no checkpoint. A scalar parameter counts as one row.

    name: of the full tensor, as in a model that shards and fuses nothing.
    shape: of the full tensor, vocabulary unpadded.
    box: the region of the full tensor; empty on a rank that holds only padding.
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
        """Index, in the parameter's flat storage, of the first element of the box."""
        return self.start * prod(box_shape(self.box)[1:])

    def overlap(self, flat_lo: int, flat_hi: int) -> Range | None:
        """The flat range of the box that lies in [flat_lo, flat_hi) of the parameter's flat storage.

        Element i of the box is element `offset + i` of the storage. None where they do not overlap.
        """
        lo = max(flat_lo - self.offset, 0)
        hi = min(flat_hi - self.offset, box_size(self.box))
        return (lo, hi) if lo < hi else None


def full_slice(name: str, shape: Shape) -> ParameterSlice:
    """The slice of a parameter that is the full tensor: not sharded, not fused, not padded."""
    return ParameterSlice(name, shape, full_box(shape), 0, shape[0] if shape else 1)


class Fragment(NamedTuple):
    """Elements of a stored parameter's flat storage that are kept in another flat tensor.

    parameter: its name. offset: where in that tensor they begin. start: where in the parameter's storage.
    """

    parameter: str
    offset: int
    start: int
    numel: int
