"""Which rank needs what of the lanes of a live source.

Position g is in column g % columns and belongs to the rank g % ranks, so a rank meets only the lanes of
columns that equal it modulo the greatest common divisor of both numbers: where the columns are a multiple of
the ranks and each belongs to one lane, each lane is met by one rank alone. Otherwise several ranks tokenize
the same lane, and each keeps its own rows: more work for the CPU, never another result.
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

    positions: (count,) of these rows in the global order.
    """

    lane: int
    positions: np.ndarray
    wanted: np.ndarray


def demands(
    positions: np.ndarray, lanes: np.ndarray, served: Sequence[int], rank: int, ranks: int
) -> list[Demand]:
    """The rows to take so that `positions` of a source, ascending, get theirs; only of the lanes `served`.

    lanes: (count,) that each of the positions takes a row of.
    """
    found = []
    for number in np.intersect1d(lanes, served).tolist():
        here = positions[lanes == number]
        found.append(Demand(number, here, here % ranks == rank))
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
