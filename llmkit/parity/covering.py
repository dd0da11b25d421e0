"""Few cases that together try every pair of values: most mistakes need no more than two to meet."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations
from typing import TypeAlias

from llmkit.parity.cases import FACTORS, Case, all_cases

Combination: TypeAlias = tuple[tuple[str, object], ...]
LAYOUT = ("stage", "engine", "tensor", "sequence_parallel")
"""What decides most; all of its combinations are tried whatever the strength."""


def covering(strength: int = 2) -> list[Case]:
    """Valid cases in which each combination of `strength` values, and each layout, occurs.

    In bf16 rounding hides small differences. There only combinations that name it count, so that all
    others are tried in fp32.

    Greedy: next comes the case with most that is new for its price. Processes are the price: many of
    them share few cores where this is tried. The result is always the same.
    """
    cases = list(all_cases())
    random.Random(0).shuffle(cases)  # among equally good ones, not always those of the first values
    index: dict[Combination, int] = {}
    masks = [_mask(case, strength, index) for case in cases]
    missing = (1 << len(index)) - 1
    chosen: list[Case] = []
    while missing:
        gains = [(mask & missing).bit_count() for mask in masks]
        best = max(range(len(cases)), key=lambda i: (gains[i] / PRICE[cases[i].world_size], gains[i]))
        chosen.append(cases[best])
        missing &= ~masks[best]
    return sorted(chosen, key=lambda case: (case.world_size, case.tensor))


PRICE = {1: 1.0, 2: 1.1, 4: 1.4, 8: 2.0}
"""How much new a case must try, relative to one on a single process."""


def _mask(case: Case, strength: int, index: dict[Combination, int]) -> int:
    """One bit for each combination that the case tries; new ones get the next number in `index`."""
    return sum(1 << index.setdefault(each, len(index)) for each in tried(case, strength))


def tried(case: Case, strength: int) -> Iterator[Combination]:
    """The combinations that a case tries."""
    for each in dict.fromkeys([*combinations(FACTORS, strength), LAYOUT]):
        if case.precision == "fp32" or "precision" in each:
            yield tuple((name, getattr(case, name)) for name in each)
