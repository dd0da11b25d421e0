"""Where an engine's state lies, and how it becomes checkpoint pieces and is filled from them.

Every engine keeps fp32 masters and moments somewhere: in tensors of the parameter's shape, or in flat
slices that begin and end anywhere in a parameter (ZeRO). A `StateShard` describes such a range.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.checkpoint.pieces import EMA, Piece
from llmkit.config.adapters import is_adapter
from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import Box, ParameterSlice, Range

PART = 2**20
"""Elements of a parameter, at least, that one of several ranks writes into a checkpoint."""


class StateShard(NamedTuple):
    """Elements start, start + 1, ... of one parameter's flat storage.

    kind: "master", "exp_avg", ... data: (n,) fp32, the memory that the engine works with.
    """

    parameter: str
    kind: str
    data: Tensor
    start: int

    def within(self, lo: int, hi: int) -> StateShard:
        """Its elements of the range [lo, hi) of the parameter's flat storage, perhaps none."""
        lo, hi = (min(max(bound - self.start, 0), len(self.data)) for bound in (lo, hi))
        return self._replace(data=self.data[lo:hi], start=self.start + lo)


class Source(Protocol):
    """Something that state can be taken from: a checkpoint, or the initial weights."""

    def names(self, kind: str) -> Collection[str]:
        """The full tensors of which it has state of this kind: "master" all; moments none before a step."""
        ...

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """The elements `range` of the box, counted row by row, fp32."""
        ...

    def read_into(self, out: Tensor, name: str, kind: str, box: Box, range: Range) -> None:
        """Sets `out`, (n,) on any device, to these elements."""
        out.copy_(self.read(name, kind, box, range))


class AdaptedWeights(Source):
    """A source for a model with adapters: these and their moments from one source, the rest from another."""

    def __init__(self, base: Source, adapters: Source) -> None:
        self.base, self.adapters = base, adapters

    def names(self, kind: str) -> Collection[str]:
        """See `Source.names`."""
        own = [name for name in self.adapters.names(kind) if is_adapter(name)]
        return own if kind != "master" else [*self.base.names(kind), *own]

    def read(self, name: str, kind: str, box: Box | None = None, range: Range | None = None) -> Tensor:
        """See `Source.read`."""
        return (self.adapters if is_adapter(name) else self.base).read(name, kind, box, range)

    def read_into(self, out: Tensor, name: str, kind: str, box: Box, range: Range) -> None:
        """See `Source.read_into`."""
        (self.adapters if is_adapter(name) else self.base).read_into(out, name, kind, box, range)


def share_out(parameters: Mapping[str, tuple[int, Axis]]) -> dict[str, Range]:
    """Which elements of each parameter this rank writes, where several hold the same; none: it is left out.

    Parameters are divided into parts, which are dealt to the ranks in turn, so that none writes much more
    than another. parameters: the elements of each, and the ranks that hold the same of it.
    """
    found: dict[str, Range] = {}
    dealt = dict.fromkeys((holders.size for _, holders in parameters.values()), 0)
    for name, (size, holders) in parameters.items():
        parts = min(holders.size, max(1, size // PART))
        number = (holders.rank - dealt[holders.size]) % holders.size
        dealt[holders.size] += parts  # of ranks of one kind, as what they hold is of one size
        if number < parts:
            found[name] = (size * number // parts, size * (number + 1) // parts)
    return found


def to_pieces(shards: Iterable[StateShard], parts: Mapping[str, Sequence[ParameterSlice]]) -> Iterator[Piece]:
    """The pieces that the shards hold; what only pads a vocabulary is in none."""
    for shard in shards:
        for part in parts[shard.parameter]:
            if shared := part.overlap(shard.start, shard.start + shard.data.numel()):
                yield Piece(part.name, shard.kind, part.shape, part.box, shared, _view(shard, part, shared))


@torch.no_grad()
def load_shards(
    shards: Iterable[StateShard], parts: Mapping[str, Sequence[ParameterSlice]], source: Source
) -> None:
    """Sets the shards to what the source has of them. Moments that it has not become zero, a moving average
    becomes the weights.

    A rank reads only its own elements.
    """
    there: dict[str, frozenset[str]] = {}
    for shard in shards:
        if shard.kind not in there:
            there[shard.kind] = frozenset(source.names(shard.kind))
        found = []
        for part in parts[shard.parameter]:
            shared = part.overlap(shard.start, shard.start + shard.data.numel())
            kind = shard.kind
            if kind == EMA and part.name not in there[EMA]:
                kind = "master"
            if shared and (kind == "master" or part.name in there[kind]):
                found.append((part, kind, shared))
        if sum(hi - lo for *_, (lo, hi) in found) < shard.data.numel():
            shard.data.zero_()
        for part, kind, shared in found:
            source.read_into(_view(shard, part, shared), part.name, kind, part.box, shared)


def broadcast_shards(shards: Iterable[StateShard], axis: Axis) -> None:
    """Sets the shards on all ranks along the axis to those of its first rank. Collective.

    For ranks that hold the same elements, of which that rank alone has read the files.
    """
    if axis.size > 1:
        for shard in shards:
            dist.broadcast(shard.data, group=axis.group, group_src=0)


def _view(shard: StateShard, part: ParameterSlice, shared: Range) -> Tensor:
    """The shard's memory of these elements of the part's box."""
    lo, hi = (part.offset + index - shard.start for index in shared)
    return shard.data[lo:hi]
