"""Which source each position draws from: a block of slots that repeats, with every source spread evenly.

Positions are also read by columns: the column of position g is g % columns, and a lane of a live source takes
the rows that its columns draw. So within each column a source must come as often as its weight says, not
only over all positions. Slots are therefore laid along a line on which every source is spread evenly, and
the next position of the same column takes the next slot of that line:

    block of 5 slots, 2 columns    position         0 1 2 3 4 | 5 6 7 ...
                                   slot of line     0 3 1 4 2 | 0 3 1 ...     = position / 2 modulo 5
                                   column 0 takes   0   1   2 |   3   4 ...
                                   column 1 takes     3   4   |   0   1 ...

The number of slots is prime, so that it shares no factor with the number of columns and each column passes
through the whole line.

    >>> quotas([3, 1], slots=8).tolist()
    [6, 2]
    >>> slots = slots_for(3, seed=0, start=0, quota=tuple(quotas([3, 1]).tolist()), columns=1)
    >>> slots.source[:12].tolist(), slots.rank_in_source[:12].tolist()
    ([0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0], [0, 1, 0, 2, 3, 4, 1, 5, 6, 7, 2, 8])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from llmkit.data.shuffle import key, permute
from llmkit.errors import UserError

MIX_PERIOD = 65_537
"""Slots of a block, a prime number: a weight has a grain of 1/65537."""
MIX_PERIOD_VERSION_2 = 1 << 16
_SLOT_STREAM = 1
"""Stream id mixed into the keys of the mixing, so that they are independent of those of the rows."""


def mix_period(version: int) -> int:
    """Slots of a block in this version of the order."""
    return MIX_PERIOD_VERSION_2 if version == 2 else MIX_PERIOD


def shares(weights: Sequence[float]) -> np.ndarray:
    """Share of each source, summing to 1; (sources,) float64. Raises UserError if all weights are 0."""
    heaviest = max(weights)
    if heaviest == 0:
        raise UserError("data.sources: all weights are 0, so there is no source to draw rows from")
    # Scaled by a power of two, which rounds nothing: the sum of the weights themselves may overflow.
    scaled = np.ldexp(np.asarray(weights, dtype=np.float64), -math.frexp(heaviest)[1])
    return scaled / sum(scaled.tolist())


def quotas(weights: Sequence[float], slots: int = MIX_PERIOD) -> np.ndarray:
    """Slots of each source in a block, summing to `slots`, by largest remainder; weight 0 gets none.

    Raises UserError if all weights are 0, or one is too small to get a slot.
    """
    share = shares(weights) * slots
    count = np.floor(share).astype(np.int64)
    count[np.argsort(count - share, kind="stable")[: slots - int(count.sum())]] += 1
    small = (count == 0) & (np.asarray(weights) > 0)
    if small.any():
        i = int(np.argmax(small))
        raise UserError(
            f"the weight of data.sources.{i}, {weights[i]:g}, is {share[i] / slots:.2g} of all weights, and "
            f"the smallest share is 1/{slots}; give it a larger weight, 0, or remove the source"
        )
    return count


@dataclass(frozen=True)
class Slots:
    """The slots of a block.

    line: (slots,) int32, the sources along the line. index: (slots,) where on the line the slot of a position
    is, which is its distance from the start of the weights, modulo the number of slots.
    """

    line: np.ndarray
    index: np.ndarray
    quota: tuple[int, ...]
    columns: int

    @cached_property
    def source(self) -> np.ndarray:
        """(slots,) int32, source of each slot."""
        return self.line[self.index]

    @cached_property
    def rank_in_source(self) -> np.ndarray:
        """(slots,) int32, number of earlier slots of the block with the same source."""
        rank = np.empty(self.source.size, dtype=np.int32)
        by_source = np.argsort(self.source, kind="stable")
        begins = np.repeat(np.cumsum(self.quota) - self.quota, self.quota)
        rank[by_source] = np.arange(by_source.size) - begins
        return rank

    def in_column(self, source: int, distance: np.ndarray) -> np.ndarray:
        """How often the column of each of these positions drew `source` before them; int64, (count,).

        distance: (count,) from the position where the weights begin to hold.
        """
        round_, column = np.divmod(distance, self.columns)
        begin = self.index[column].astype(np.int64)
        turn, slot = np.divmod(begin + round_, self.index.size)
        own = np.flatnonzero(self.line == source)
        return turn * own.size + np.searchsorted(own, slot) - np.searchsorted(own, begin)


@lru_cache(maxsize=4)
def slots_for(version: int, seed: int, start: int, quota: tuple[int, ...], columns: int) -> Slots:
    """The slots of weights that hold from position `start` on; the last few are kept.

    Each of a source's q slots lies anywhere in its own q-th part of the line: evenly spread, and
    yet without a period that could coincide with that of something else.
    """
    if version == 2:
        index = np.arange(MIX_PERIOD_VERSION_2)
        shuffled = permute(index, index.size, key(seed, _SLOT_STREAM, start))
        line = np.searchsorted(np.cumsum(quota), shuffled, side="right").astype(np.int32)
        return Slots(line, index, quota, 1)
    source = np.repeat(np.arange(len(quota)), quota)
    number = np.concatenate([np.arange(count) for count in quota])
    within = (key(seed, _SLOT_STREAM, start, source, number) >> np.uint64(11)) * 2.0**-53
    line = source[np.argsort((number + within) / np.repeat(quota, quota), kind="stable")].astype(np.int32)
    index = np.arange(MIX_PERIOD, dtype=np.int64) * pow(columns, -1, MIX_PERIOD) % MIX_PERIOD
    return Slots(line, index, quota, columns)
