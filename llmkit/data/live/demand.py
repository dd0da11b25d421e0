"""Which rank needs what of the lanes of a live source.

Position g is in column g % columns and belongs to the rank g % ranks, so a rank meets only the lanes of
columns that equal it modulo the greatest common divisor of both numbers: where the columns are a multiple of
the ranks and each belongs to one lane, each lane is met by one rank alone. Otherwise several ranks tokenize
the same lane, and each keeps its own rows: more work for the CPU, never another result. Where rows are left
out (`llmkit.data.omitted`), they are multiples of the columns, and those behind them count on without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import JsonValue

from llmkit.errors import DisagreementError

Cursors = dict[str, JsonValue]
"""Where the lanes of a source stand, by number of the lane as text."""


@dataclass(frozen=True)
class Demand:
    """What a rank takes from one lane, in order: `wanted[k]` says whether the k-th row is its own.

    numbers: (count,) of these rows, as `demands` was given them.
    """

    lane: int
    numbers: np.ndarray
    wanted: np.ndarray


def demands(
    numbers: np.ndarray, lanes: np.ndarray, is_omitted: np.ndarray, served: Sequence[int],
    rank: int, ranks: int,
) -> list[Demand]:  # fmt: skip
    """The rows to take so that those of a source, ascending, get theirs; only of the lanes `served`.

    numbers: (count,) of the rows in the run: the row g belongs to the rank g % ranks. lanes: (count,) that
    each of them is taken from. is_omitted: (count,) whether it is taken for nobody.
    """
    found = []
    for lane in np.intersect1d(lanes, served).tolist():
        here = lanes == lane
        wanted = (numbers[here] % ranks == rank) & ~is_omitted[here]
        found.append(Demand(lane, numbers[here], wanted))
    return found


def merge_cursors(
    cursors: Sequence[Cursors | None], names: Sequence[str], gather: Callable[[str], list[str]]
) -> list[Cursors | None]:
    """Where all lanes stand, from what each rank knows of its own; all ranks must call it.

    Raises DisagreementError on all of them if two ranks that read the same lane disagree.
    """
    merged: list[Cursors | None] = [None if each is None else {} for each in cursors]
    for text in gather(json.dumps(list(cursors))):
        for place, known in enumerate(json.loads(text)):
            whole = merged[place]
            for lane, cursor in (known or {}).items():
                assert whole is not None, place
                if whole.setdefault(lane, cursor) != cursor:
                    raise DisagreementError(
                        f"source {names[place]}: processes that read the same files disagree about lane "
                        f"{lane} ({whole[lane]} and {cursor}); do all of them see the same files?"
                    )
    return merged
