"""Where an engine's state lies, and how it becomes checkpoint pieces and is filled from them.

Every engine keeps fp32 masters and moments somewhere: in tensors of the parameter's shape, or in flat
slices that ZeRO has cut anywhere. A `StateShard` names such a place, and these functions do the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.checkpoint.pieces import Piece
from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import Box, ParameterSlice, Range


class StateShard(NamedTuple):
    """Elements start, start + 1, ... of one parameter's flat storage.

    kind: "master", "exp_avg", ... data: (n,) fp32, the memory that the engine works with.
    """

    parameter: str
    kind: str
    data: Tensor
    start: int


class Source(Protocol):
    """Something that state can be taken from: a checkpoint, or the initial weights."""

    def kinds(self) -> Sequence[str]:
        """What is there: "master", and moments unless no step was taken."""
        ...

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """The elements `range` of the box, counted row by row, fp32."""
        ...


def to_pieces(slots: Iterable[StateShard], parts: Mapping[str, Sequence[ParameterSlice]]) -> Iterator[Piece]:
    """The pieces that the slots hold; what only pads a vocabulary is in none."""
    for slot in slots:
        for part in parts[slot.parameter]:
            if shared := part.overlap(slot.start, slot.start + slot.data.numel()):
                yield Piece(part.name, slot.kind, part.shape, part.box, shared, _view(slot, part, shared))


@torch.no_grad()
def load_shards(
    slots: Iterable[StateShard], parts: Mapping[str, Sequence[ParameterSlice]], source: Source
) -> None:
    """Sets the slots to what the source has of them, and to zero where it has nothing.

    A rank reads only its own elements.
    """
    kinds = source.kinds()
    for slot in slots:
        slot.data.zero_()
        for part in parts[slot.parameter]:
            shared = part.overlap(slot.start, slot.start + slot.data.numel())
            if shared and slot.kind in kinds:
                _view(slot, part, shared).copy_(source.read(part.name, slot.kind, part.box, shared))


def broadcast_shards(slots: Iterable[StateShard], axis: Axis) -> None:
    """Gives all ranks along the axis the slots of its first rank, where they hold the same. Collective.

    After that rank alone has loaded them: otherwise every rank would read the same files.
    """
    if axis.size > 1:
        for slot in slots:
            dist.broadcast(slot.data, group=axis.group, group_src=0)


def _view(slot: StateShard, part: ParameterSlice, shared: Range) -> Tensor:
    """The slot's memory of these elements of the part's box."""
    lo, hi = (part.offset + index - slot.start for index in shared)
    return slot.data[lo:hi]
