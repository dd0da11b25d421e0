"""Which lanes of live sources give a rank its rows, in order: a pure function of the position.

Position g is in column g % columns and belongs to the rank g % ranks (counted without rows that are left out,
which are multiples of the columns), so a rank meets only the lanes of columns that equal it modulo the
greatest common divisor of both numbers: where the columns are a multiple of the ranks and each belongs to one
lane, each lane is met by one rank alone. Otherwise several ranks tokenize the same lane, and each keeps its
own rows: more work for the CPU, never another result. With 4 columns, a lane each, and 2 ranks:

    position   0  1  2  3  4  5  6  7
    rank 0     lane 0, lane 2, lane 0, lane 2       positions 0, 2, 4, 6
    rank 1     lane 1, lane 3, lane 1, lane 3       positions 1, 3, 5, 7
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from llmkit.data.live.lanes import served_lanes
from llmkit.data.sampler import MixtureSampler

POSITIONS = 4096
"""Positions whose lanes are computed at a time: a call alone costs as much as some hundred."""

LaneKey = tuple[int, int]
"""Index of the source, lane."""


class LaneRows(NamedTuple):
    """Rows to take, in order; each (count,): position of the row, index of its source, lane."""

    positions: np.ndarray
    sources: np.ndarray
    lanes: np.ndarray


class LaneSchedule(Iterable[LaneKey]):
    """The lanes that `rank` of `ranks` takes rows from, at the positions from `start` on.

    Rows of other ranks, and rows that are left out, move a lane, too, and are among them. tables: of each
    live source, by its index (`lanes.lane_table`). Iterating gives a key a row; it ends only where no live
    source is drawn any more.
    """

    def __init__(
        self, sampler: MixtureSampler, tables: Mapping[int, np.ndarray], rank: int, ranks: int, start: int = 0
    ) -> None:
        self._sampler, self._tables, self._start = sampler, dict(tables), start
        self.served = {source: served_lanes(table, rank, ranks) for source, table in tables.items()}
        """The lanes of each source, ascending."""
        self._is_served = {source: np.isin(tables[source], lanes) for source, lanes in self.served.items()}

    def __iter__(self) -> Iterator[LaneKey]:
        begin, last = self._start, self._sampler.segments[-1]
        is_endless = any(last.quota[source] for source in self._tables)
        while is_endless or begin < last.start:
            _, sources, lanes = self.between(begin, begin + POSITIONS)
            yield from zip(sources.tolist(), lanes.tolist(), strict=True)
            begin += POSITIONS

    def between(self, begin: int, end: int) -> LaneRows:
        """The rows at the positions [begin, end)."""
        found = [np.empty((3, 0), dtype=np.int64)]
        for source, table in self._tables.items():
            rounds, columns = table.shape
            positions = np.arange(begin, end)
            is_served = self._is_served[source]
            positions = positions[np.asarray(is_served.any(axis=0))[positions % columns]]
            positions = positions[self._sampler.sources(positions) == source]
            turn = self._sampler.in_column(source, positions) % rounds
            rows = np.stack([positions, np.full_like(positions, source), table[turn, positions % columns]])
            found.append(rows[:, is_served[turn, positions % columns]])
        rows = np.concatenate(found, axis=1)
        return LaneRows(*rows[:, np.argsort(rows[0], kind="stable")])
