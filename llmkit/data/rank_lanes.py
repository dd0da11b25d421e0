"""The lanes of live sources that a rank reads, and which of them are at their end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from llmkit.data.live.lanes import Cursors, served_lanes
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Cursor
from llmkit.data.prepared import TrainSource


class RankLanes:
    """The lanes that `rank` of `world_size` data-parallel ranks reads.

    Cursors are given by source, None for one that is not live, and by number of the lane.
    """

    def __init__(self, train: Sequence[TrainSource], rank: int, world_size: int) -> None:
        self._train, self._rank, self._world = train, rank, world_size
        self._served: dict[int, list[int]] = {}
        self._end_told: set[int] = set()

    def left(self, cursors: Sequence[Cursors | None]) -> dict[int, int]:
        """Of each live source with `max_epochs`, by index: how many of the lanes are not at their end."""
        found = {}
        for index, known in enumerate(cursors):
            most = self._train[index].max_epochs
            if most is not None and known is not None:
                found[index] = sum(not _is_at_end(known.get(str(lane)), most) for lane in self._of(index))
        return found

    def own(self, cursors: Sequence[Cursors | None]) -> list[Cursors | None]:
        """The cursors of these lanes; of the others a rank knows only where they once stood."""
        return [
            None if known is None else {lane: known[lane] for lane in map(str, self._of(i)) if lane in known}
            for i, known in enumerate(cursors)
        ]

    def end_of(self, index: int, lane: int, cursor: Sequence[int]) -> Iterator[str]:
        """A note where the first of a source's lanes is at its end now, once."""
        source = self._train[index]
        if index in self._end_told or source.max_epochs is None or not _is_at_end(cursor, source.max_epochs):
            return
        self._end_told.add(index)
        yield (
            f"source {source.name}: lane {lane} is the first at its end (max_epochs "
            f"{source.max_epochs}); its rows hold no targets until all lanes are"
        )

    def _of(self, index: int) -> list[int]:
        """The lanes of a source."""
        if index not in self._served:
            rows = self._train[index].rows
            assert isinstance(rows, LiveSource), index
            self._served[index] = served_lanes(rows.lane_table, self._rank, self._world)
        return self._served[index]


def _is_at_end(cursor: Any, max_epochs: int) -> bool:
    """Whether a lane with this cursor, None before its first row, was read as often as it may be."""
    return cursor is not None and Cursor(*cursor).epoch >= max_epochs
