"""What rows of a session have read, kept for those that begin alike: the next turn of a chat has it all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmkit.model.cache import Kept


class Beginning(NamedTuple):
    """Keys and values of the first `length` positions of a row."""

    kept: Kept
    length: int


class KeptRows:
    """Rows that have ended. room: positions that are kept in all; the longest unused go first."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._rows: list[tuple[list[int], Kept]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, ids: Sequence[int], kept: Kept) -> None:
        """Keeps a row that has read these ids, in place of rows that it continues."""
        own = list(ids)
        self._rows = [each for each in self._rows if own[: len(each[0])] != each[0]]
        self._rows.append((own, kept))
        while sum(len(each[0]) for each in self._rows) > self._room:
            del self._rows[0]

    def find(self, ids: Sequence[int]) -> Beginning | None:
        """The longest beginning of these ids that was read; one of them, at least, is left to be read."""
        best, place = None, -1
        for number, (own, kept) in enumerate(self._rows):
            length = kept.usable(min(_common(own, ids), len(ids) - 1))
            if length > (0 if best is None else best.length):
                best, place = Beginning(kept, length), number
        if best is not None:
            self._rows.append(self._rows.pop(place))
        return best


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids at the beginning are the same."""
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)
