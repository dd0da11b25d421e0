"""Rows of a live source with the records that they are made of.

A row follows from all records of its lane before it, so a lane is read from its beginning; other lanes are
not read. What a run has at position g of its order is row n of a lane (`rows_of_lanes`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Cursor, Lane, LaneDocument, Row
from llmkit.data.sampler import MixtureSampler
from llmkit.data.sources.reader import RawRecord
from llmkit.data.sources.records import Skipped
from llmkit.data.tokens.encode import Encoded
from llmkit.errors import UserError

SETTLED = 2.0
"""Seconds of tokenizing after which their speed is known."""


class ReadDocument(NamedTuple):
    """A document of a lane. start, stop: its tokens in the stream of the lane, end-of-text included. split,
    record: where it was read."""

    start: int
    stop: int
    split: int
    record: int
    epoch: int


class TracedRow(NamedTuple):
    """A row of a lane. start: of its first token in the stream of the lane."""

    row: Row
    start: int
    documents: list[ReadDocument]


class TracedLane(Lane):
    """A lane from its beginning on that knows which records its rows are made of."""

    def __init__(self, source: LiveSource, lane: int) -> None:
        super().__init__(source, lane)
        self._length, self._start_of_row = source.sequence_length, 0
        self._record = 0, 0
        self._written = 1  # the stream begins with an end-of-text
        self._read: deque[ReadDocument] = deque()

    def traced(self) -> TracedRow:
        """The next row."""
        row, start = next(self), self._start_of_row
        self._start_of_row += self._length
        while self._read and self._read[0].stop <= start + 1:  # nothing but its end-of-text is in the row
            self._read.popleft()
        stop = start + self._length + 1
        return TracedRow(row, start, [document for document in self._read if document.start < stop])

    def _encode(
        self, split: int, records: list[RawRecord]
    ) -> Iterator[tuple[RawRecord, Encoded | Skipped | None]]:
        for record, content in super()._encode(split, records):
            self._record = split, record.number
            yield record, content

    def _with_end(self, content: Encoded, cursor: Cursor) -> LaneDocument:
        document = super()._with_end(content, cursor)
        start, self._written = self._written, self._written + document.tokens.size
        self._read.append(ReadDocument(start, self._written, *self._record, cursor.epoch))
        return document


def rows_of_lanes(
    source: LiveSource, index: int, sampler: MixtureSampler, positions: Sequence[int]
) -> list[tuple[int, int]]:
    """Lane, and number of its row, of each of these positions, at all of which the source `index` stands."""
    table, found = source.lane_table, []
    rounds, columns = table.shape
    for position in positions:
        around = position + np.arange(columns)  # a position of each column, none of which was drawn there yet
        drawn = np.empty(columns, dtype=np.int64)
        drawn[around % columns] = sampler.in_column(index, around)
        column = position % columns
        lane = int(table[drawn[column] % rounds, column])
        of_lane = table == lane
        turns, rest = np.divmod(drawn, rounds)
        before = turns * of_lane.sum(axis=0)
        before += (of_lane & (np.arange(rounds)[:, None] < rest)).sum(axis=0)
        found.append((lane, int(before.sum())))
    return found


def make_rows(
    source: LiveSource,
    wanted: Mapping[int, set[int]],
    limit: float,
    report: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> dict[tuple[int, int], TracedRow]:
    """The rows `wanted` of each lane, by (lane, row). limit: seconds that it may take.

    Raises UserError where the speed of the first seconds tells that it would take longer.
    """
    needed = {lane: max(rows) + 1 for lane, rows in wanted.items()}
    total, done, begin = sum(needed.values()), 0, clock()
    is_told = False
    made = {}
    for lane, count in needed.items():
        reading = TracedLane(source, lane)
        try:
            for number in range(count):
                traced = reading.traced()
                if number in wanted[lane]:
                    made[lane, number] = traced
                done += 1
                passed = clock() - begin
                if passed < SETTLED:
                    continue
                estimate = passed / done * total
                what = (
                    f"source {source.name}: {total:,} rows in {len(needed)} of its {source.lanes} lanes have "
                    f"to be tokenized for that, which takes about {shown_time(estimate)}"
                )
                if estimate > limit and not is_told:
                    minutes = int(estimate) // 60 + 1
                    raise UserError(f"{what}; wait with --minutes {minutes}, or ask for an earlier row")
                if not is_told:
                    report(f"data: {what}")
                is_told = True
        finally:
            reading.close()
    return made


def shown_time(seconds: float) -> str:
    """A time for the user."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:,.0f} minutes"
