"""The order of the training rows: a pure function from a global position to a row of a source.

Nothing here knows of ranks, workers or micro-batches, and memory does not grow with the number of rows.
So a run goes on at any world size from one integer, the number of rows already consumed:

    position -> weights that hold there -> slot of the mixing block -> source and its local count
             -> epoch and row of that epoch, by a keyed permutation

A source of M tokens is an endless repetition of them that is cut into rows of T tokens, so the row in which
an epoch ends goes on with the beginning of the next epoch. With M = 10 and T = 4:

    tokens   0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 ...
    rows     |   0   |   1   |   2   |   3   |   4   |         epoch 0: rows 0, 1, 2; epoch 1: rows 3, 4

Two sources, of 10 and 7 tokens, mixed 3 to 1 in rows of 4; from position 8 on the second one alone:

    >>> sampler = MixtureSampler(seed=0, sizes=[10, 7], weights=[3, 1], length=4)
    >>> sampler.reweight(8, [0, 1])
    >>> source, epoch, row = sampler.at(np.arange(12))
    >>> source.tolist()
    [0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1]
    >>> epoch.tolist()
    [0, 0, 0, 0, 1, 1, 0, 2, 1, 1, 2, 2]
    >>> row.tolist()
    [2, 0, 0, 1, 3, 4, 1, 5, 3, 2, 4, 5]
    >>> sampler.consumed(12).tolist()
    [6, 6]
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmkit.data.mixing import Slots, mix_period, quotas, slots_for
from llmkit.data.shuffle import HashWord, key, permute

VERSION: Literal[2, 3] = 3
"""Of the order. Version 2, which older checkpoints have, mixes otherwise and leaves out the last tokens of a
source that do not fill a row; the caller does so by passing sizes that are multiples of the length."""
_ROW_STREAM = 2
"""Stream id mixed into the keys of the rows, so that they are independent of those of the mixing."""


@dataclass(frozen=True)
class MixtureSegment:
    """Positions from `start` on, with fixed weights. quota: slots of each source in a block."""

    start: int
    weights: tuple[float, ...]
    quota: tuple[int, ...]


def rows_before(epoch: np.ndarray | int, size: int, length: int) -> np.ndarray | int:
    """Rows of a source that lie before an epoch; size: tokens of an epoch, length: of a row."""
    return -(-epoch * size // length)


class MixtureSampler:
    """Which row of which source stands at a global position; epochs follow each other without end.

    seed: of the run. sizes: tokens of an epoch of each source, None where its rows are not numbered (a live
    source). weights: share of each source. shuffle_ids: of each source, mixed into the keys of its
    permutations, by default its index. start: the first position. consumed_before: rows of each source that
    were consumed before it. length: tokens of a row. columns: see `llmkit.data.mixing`.
    """

    def __init__(
        self,
        seed: int,
        sizes: Sequence[int | None],
        weights: Sequence[float],
        shuffle_ids: Sequence[int] | None = None,
        start: int = 0,
        consumed_before: Sequence[int] | None = None,
        length: int = 1,
        columns: int = 1,
        version: Literal[2, 3] = VERSION,
    ) -> None:
        self.seed, self.start = seed, start
        self.version: Literal[2, 3] = version
        self.length, self.columns = length, columns
        self.sizes = tuple(sizes)
        self.shuffle_ids = tuple(shuffle_ids or range(len(sizes)))
        self.consumed_before = tuple(consumed_before or [0] * len(sizes))
        assert len(sizes) == len(weights) == len(self.shuffle_ids) == len(self.consumed_before), weights
        assert all(size is None or size >= length for size in sizes), (sizes, length)
        self._starts = {start: np.asarray(self.consumed_before, dtype=np.int64)}  # consumed before segments
        self._drawn: dict[int, tuple[int, np.ndarray]] = {}  # as `_drawn_before` found it last
        self.segments = [self._segment(start, weights)]

    def reweight(self, position: int, weights: Sequence[float]) -> None:
        """From `position` on draw with other weights; no row is lost or repeated by the change."""
        last = self.segments[-1]
        assert position >= last.start, (position, last.start)
        assert len(weights) == len(self.sizes), weights
        segment = self._segment(position, weights)
        if position == last.start:
            self.segments.pop()
        self.segments.append(segment)

    def consumed(self, position: int) -> np.ndarray:
        """Rows of each source that lie before `position`, shape (sources,)."""
        number = max(0, bisect_right(self.segments, position, key=lambda segment: segment.start) - 1)
        return self._before(number) + self._inside(number, position)

    def sources(self, positions: np.ndarray) -> np.ndarray:
        """Source of each of the global positions, which ascend; int32, (count,). Far cheaper than `at`."""
        parts = [np.empty(0, dtype=np.int32)]
        for number, distance in self._by_segment(positions):
            slots = self._slots(number)
            parts.append(slots.source[distance % slots.source.size])
        return np.concatenate(parts)

    def in_column(self, source: int, positions: np.ndarray) -> np.ndarray:
        """How often the column of each of these positions, which ascend, drew `source` before; (count,).

        Counted from `start` on, over all changes of weights.
        """
        parts = [np.empty(0, dtype=np.int64)]
        for number, distance in self._by_segment(positions):
            before = self._drawn_before(source, number)[distance % self.columns]
            parts.append(before + self._slots(number).in_column(source, distance))
        return np.concatenate(parts)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row of global positions, which ascend; all int64, (count,).

        Row k is tokens k * length and following of the endless repetition of the source; where an epoch is
        whole rows, k is less than their number. Of a source whose rows are not numbered, the epoch is 0 and
        the row the number of its rows before.
        """
        parts = [np.empty((2, 0), dtype=np.int64)]
        parts += [self._locate(number, distance) for number, distance in self._by_segment(positions)]
        source, row = np.concatenate(parts, axis=1)
        epoch = np.zeros(positions.shape, dtype=np.int64)
        for i in np.unique(source).tolist():
            if self.sizes[i] is not None:
                here = source == i
                epoch[here], row[here] = self._rows_of(i, row[here])
        return source, epoch, row

    def rows(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Source, epoch and row of positions start .. start+count-1; cheapest for 4096 or more at a time."""
        return self.at(np.arange(start, start + count, dtype=np.int64))

    def _segment(self, start: int, weights: Sequence[float]) -> MixtureSegment:
        quota = quotas(weights, mix_period(self.version))
        return MixtureSegment(start, tuple(weights), tuple(quota.tolist()))

    def _slots(self, number: int) -> Slots:
        segment = self.segments[number]
        return slots_for(self.version, self.seed, segment.start, segment.quota, self.columns)

    def _before(self, number: int) -> np.ndarray:
        """Rows of each source consumed before a segment; found when needed, as it takes the slots of all
        segments before it."""
        first = number
        while self.segments[first].start not in self._starts:
            first -= 1
        for n in range(first, number):
            end = self.segments[n + 1].start
            self._starts[end] = self._starts[self.segments[n].start] + self._inside(n, end)
        return self._starts[self.segments[number].start]

    def _drawn_before(self, source: int, number: int) -> np.ndarray:
        """Rows of a source that were drawn before a segment by each column, the segment's first position
        being in the first; (columns,)."""
        nothing = 0, np.zeros(self.columns, dtype=np.int64)
        first, drawn = self._drawn.get(source, nothing)
        if first > number:
            first, drawn = nothing
        for n in range(first, number):
            length = self.segments[n + 1].start - self.segments[n].start
            distance = length + np.arange(self.columns)
            drawn = drawn[distance % self.columns] + self._slots(n).in_column(source, distance)
        self._drawn[source] = number, drawn
        return drawn

    def _inside(self, number: int, position: int) -> np.ndarray:
        """Rows of each source that lie in a segment before `position`."""
        segment, slots = self.segments[number], self._slots(number)
        block, slot = divmod(position - segment.start, slots.source.size)
        rest = np.bincount(slots.source[:slot], minlength=len(self.sizes))
        return block * np.asarray(segment.quota) + rest

    def _by_segment(self, positions: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Ascending positions by the number of their segment, as distances from its start."""
        cuts = np.searchsorted(positions, [segment.start for segment in self.segments[1:]])
        parts = enumerate(np.split(positions, cuts))
        return [(number, part - self.segments[number].start) for number, part in parts if part.size]

    def _locate(self, number: int, distance: np.ndarray) -> np.ndarray:
        """Source, and number of its rows that lie before, at distances from the start of a segment; int64,
        (2, count)."""
        before, slots = self._before(number), self._slots(number)
        block, slot = np.divmod(distance, slots.source.size)
        source = slots.source[slot]
        quota = np.asarray(self.segments[number].quota)
        return np.stack([source, before[source] + block * quota[source] + slots.rank_in_source[slot]])

    def _rows_of(self, source: int, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Epoch and row that follow after `count` rows of a source."""
        size, length = self.sizes[source], self.length
        assert size is not None
        epochs = count * length // size
        # One key for all where they share the epoch, which is nearly always so: half the work.
        word: HashWord = int(epochs[0]) if (epochs == epochs[0]).all() else epochs
        keys = key(self.seed, _ROW_STREAM, self.shuffle_ids[source], word)
        first = rows_before(word, size, length)
        lengths = rows_before(word + 1, size, length) - first
        index = count - first  # within the epoch
        if isinstance(lengths, int):
            row = permute(index, lengths, keys)
        else:  # epochs of a source differ by a row at most
            row = np.empty_like(index)
            for many in np.unique(lengths).tolist():
                here = lengths == many
                row[here] = permute(index[here], many, keys[here])
        return epochs, row if size % length == 0 else row + first
