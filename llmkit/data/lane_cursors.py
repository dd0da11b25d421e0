"""Where the lanes of live sources stand that a rank reads, and which of them are at their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from llmkit.data.live.lanes import Cursors, merge_cursors, served_lanes
from llmkit.data.live.schedule import LaneKey
from llmkit.data.live.stream import Cursor
from llmkit.data.source import Source


class LaneCursors:
    """The cursors of the lanes that `rank` of `world_size` data-parallel ranks reads.

    cursors: by source, None for one that is not live, and by lane; of the lanes of other ranks, where these
    once stood. Set by `begin`, and moved by `move`.
    """

    def __init__(self, sources: Sequence[Source], rank: int, world_size: int) -> None:
        self.cursors: list[Cursors | None] = [None for _ in sources]
        self._sources = sources
        self._served = {
            source.index: served_lanes(source.live.lane_table, rank, world_size)
            for source in sources
            if source.live is not None
        }
        self._undo_log: list[tuple[Cursors, str, JsonValue]] = []
        self._ended: set[int] = set()  # sources of which a lane is at its end, as the user knows

    def begin(self, cursors: Sequence[Cursors | None]) -> None:
        """Goes on from copies of these; nothing is left to undo."""
        self.cursors = [None if each is None else dict(each) for each in cursors]
        self._undo_log.clear()

    def move(self, moved: Mapping[LaneKey, list[int]]) -> Iterator[str]:
        """These lanes stand there after a step; yields what the user should know."""
        self._undo_log.clear()
        for (source, lane), cursor in moved.items():
            cursors = self.cursors[source]
            assert cursors is not None, source
            self._undo_log.append((cursors, str(lane), cursors.get(str(lane))))
            cursors[str(lane)] = list(cursor)
            yield from self._end_of(source, lane, cursor)

    def undo_last(self) -> None:
        """As before the newest `move`."""
        for cursors, lane, before in self._undo_log:
            if before is None:
                del cursors[lane]
            else:
                cursors[lane] = before
        self._undo_log.clear()

    @property
    def left(self) -> dict[int, int]:
        """Of each live source with `max_epochs`, by index: how many of the lanes are not at their end."""
        left = {}
        for source, lanes in self._served.items():
            most, cursors = self._sources[source].max_epochs, self.cursors[source] or {}
            if most is not None:
                left[source] = sum(not _is_at_end(cursors.get(str(lane)), most) for lane in lanes)
        return left

    def merged(self, gather: Callable[[str], list[str]]) -> list[Cursors | None]:
        """The cursors of the lanes of all ranks, which must all call it if there is a live source."""
        if not self._served:
            return self.cursors
        own: list[Cursors | None] = [None for _ in self._sources]
        for source, lanes in self._served.items():
            cursors = self.cursors[source] or {}
            own[source] = {lane: cursors[lane] for lane in map(str, lanes) if lane in cursors}
        return merge_cursors(own, [source.name for source in self._sources], gather)

    def _end_of(self, index: int, lane: int, cursor: Sequence[int]) -> Iterator[str]:
        """A note where the first of a source's lanes is at its end now, once."""
        source = self._sources[index]
        if index in self._ended or source.max_epochs is None or not _is_at_end(cursor, source.max_epochs):
            return
        self._ended.add(index)
        yield (
            f"source {source.name}: lane {lane} is the first at its end (max_epochs "
            f"{source.max_epochs}); its rows hold no targets until all lanes are"
        )


def _is_at_end(cursor: Any, max_epochs: int) -> bool:
    """Whether a lane with this cursor, None before its first row, was read as often as it may be."""
    return cursor is not None and Cursor(*cursor).epoch >= max_epochs
