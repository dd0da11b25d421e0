"""How a live source is divided: its splits among lanes, and the rows of the run among these lanes.

Every lane is read from its beginning again when it is at its end. If lanes with less text gave as many rows
as others, the model would see their text more often.

The positions of the run's order lie in `data.stream_shards` columns: position g is in column g % columns.
A column belongs to one lane, or passes from lane to lane with each row that it takes of the source:

    splits of 4, 2, 1, 1 MB, 3 lanes, 4 columns    lanes: [split 0], [split 1], [splits 2, 3]
    lane_table    columns 0 and 2 always lane 0, column 1 always lane 1, column 3 always lane 2
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Sequence
from math import gcd

import numpy as np
from pydantic import JsonValue

from llmkit.errors import DisagreementError

Cursors = dict[str, JsonValue]
"""Cursors of the lanes of a source, by lane as text."""
SLOTS, LEAST_ROUNDS = 1024, 16
"""Slots, and slots of each column, at least, of a table of unequal lanes."""
LEAST_SLOTS = 8
"""Of the slots, what a lane must have: with fewer, rounding would change its share by too much."""
EVEN = 1.1
"""Lanes are taken for equal if the largest has no more than this times the text of the smallest."""


def rounds_of(columns: int) -> int:
    """Slots of each column in a table of unequal lanes."""
    return max(-(-SLOTS // columns), LEAST_ROUNDS)


def assign_splits(sizes: Sequence[int], most: int, columns: int) -> list[list[int]]:
    """Indices of the splits of each lane, ascending; largest first to the lane that has least so far.

    sizes: of the splits. most: lanes, at most; where one of them would have next to nothing, the next smaller
    divisor of `columns` is taken.
    """
    order = sorted(range(len(sizes)), key=lambda split: (-sizes[split], split))
    most = max(1, min(most, sum(size > 0 for size in sizes)))
    slots = rounds_of(columns) * columns
    for count in (most, *(n for n in range(most - 1, 1, -1) if columns % n == 0)):
        lanes = _assign(sizes, order, count)
        if min(lane_sizes(lanes, sizes)) * slots >= LEAST_SLOTS * sum(sizes):
            return lanes
    return [sorted(order)]


def _assign(sizes: Sequence[int], order: Sequence[int], count: int) -> list[list[int]]:
    smallest = [(0, lane) for lane in range(count)]
    lanes: list[list[int]] = [[] for _ in smallest]
    for split in order:
        size, lane = heapq.heappop(smallest)
        lanes[lane].append(split)
        heapq.heappush(smallest, (size + sizes[split], lane))
    return [sorted(splits) for splits in lanes]


def lane_sizes(lanes: Sequence[Sequence[int]], sizes: Sequence[int]) -> list[int]:
    """The size of each lane, whose splits have these sizes."""
    return [sum(sizes[split] for split in splits) for splits in lanes]


def lane_table(sizes: Sequence[int], columns: int) -> np.ndarray:
    """The lane of each row that a column takes: `table[k % rounds, column]` for its k-th one; int64.

    sizes: of each lane. Shape (1, columns) where each column belongs to one lane. Processes whose number
    divides the columns meet few lanes in common, so that few are tokenized twice.
    """
    if max(sizes) <= EVEN * min(sizes) and columns % len(sizes) == 0:
        return np.arange(columns)[None] % len(sizes)
    rounds = rounds_of(columns)
    # All slots in a line, a stretch for each lane; a column is a stretch of that line, too.
    ends = np.round(np.cumsum(sizes) / sum(sizes) * rounds * columns).astype(np.int64)
    line = np.repeat(np.arange(len(sizes)), np.diff(ends, prepend=0))
    table = np.empty((rounds, columns), dtype=np.int64)
    # Columns of one process lie side by side on it, for 2, 4, 8 and 16 processes.
    side_by_side = sorted(
        range(columns), key=lambda column: (column % 2, column % 4, column % 8, column % 16)
    )
    for k, column in enumerate(side_by_side):
        table[:, column] = _spread(line[k * rounds : (k + 1) * rounds])
    return table


def _spread(lanes: np.ndarray) -> np.ndarray:
    """The same, ascending, lanes, each evenly spread."""
    _, first, inverse, counts = np.unique(lanes, return_index=True, return_inverse=True, return_counts=True)
    return lanes[np.argsort((np.arange(lanes.size) - first[inverse] + 0.5) / counts[inverse], kind="stable")]


def served_lanes(table: np.ndarray, rank: int, ranks: int) -> list[int]:
    """The lanes that hold positions of a rank, ascending."""
    common = gcd(table.shape[1], ranks)
    return np.unique(table[:, rank % common :: common]).tolist()


def largest_share(table: np.ndarray, sizes: Sequence[int], ranks: int) -> float:
    """Share of the source that the busiest rank tokenizes."""
    common = gcd(table.shape[1], ranks)
    served = (served_lanes(table, rank, ranks) for rank in range(common))
    return max(sum(sizes[lane] for lane in lanes) for lanes in served) / max(sum(sizes), 1)


def merge_cursors(
    cursors: Sequence[Cursors | None], names: Sequence[str], gather: Callable[[str], list[str]]
) -> list[Cursors | None]:
    """The cursors of all lanes of each source, from those that each rank knows; all ranks must call it.

    Raises DisagreementError on all of them if two ranks that read the same lane disagree.
    """
    merged: list[Cursors | None] = [None if each is None else {} for each in cursors]
    for text in gather(json.dumps(list(cursors))):
        for index, known in enumerate(json.loads(text)):
            whole = merged[index]
            for lane, cursor in (known or {}).items():
                assert whole is not None, index
                if whole.setdefault(lane, cursor) != cursor:
                    raise DisagreementError(
                        f"source {names[index]}: processes that read the same files disagree about lane "
                        f"{lane} ({whole[lane]} and {cursor}); do all of them see the same files?"
                    )
    return merged
