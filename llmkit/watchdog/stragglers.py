"""Ranks that are slower than the others in what they do themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

SLOWER = 1.5
"""Times the median of the other ranks, in two windows one after another, makes a straggler."""
RECOVERED = 1.2
"""Below this it is none any more, and may be named again."""
WINDOW_SECONDS = 5.0
LEAST = 0.01
"""Seconds a step that nobody is named for: steps of a few milliseconds differ by what else a machine does."""


class Straggler(NamedTuple):
    """A rank that takes `seconds` a step where the median of the others takes `median`."""

    rank: int
    seconds: float
    median: float


class Stragglers:
    """Compares ranks from report to report.

    steps: of a report, which lasts WINDOW_SECONDS at least.
    """

    def __init__(self, steps: int) -> None:
        self._least = steps
        self._since: dict[int, tuple[int, float]] = {}
        self._began = 0.0
        self._slow: dict[int, int] = {}

    def look(self, now: float, ranks: Mapping[int, tuple[int, float]]) -> list[Straggler]:
        """Those that became stragglers. ranks: of each, counted steps and seconds of its own in them."""
        if self._since.keys() != ranks.keys():
            self._since, self._began, self._slow = dict(ranks), now, {}
            return []
        done = {rank: steps - self._since[rank][0] for rank, (steps, _) in ranks.items()}
        if len(ranks) < 2 or min(done.values()) < self._least or now - self._began < WINDOW_SECONDS:
            return []
        each = {rank: (own - self._since[rank][1]) / done[rank] for rank, (_, own) in ranks.items()}
        self._since, self._began = dict(ranks), now
        found = []
        for rank, seconds in each.items():
            median = _median([value for other, value in each.items() if other != rank])
            if seconds > max(SLOWER * median, median + LEAST):
                self._slow[rank] = self._slow.get(rank, 0) + 1
                if self._slow[rank] == 2:
                    found.append(Straggler(rank, seconds, median))
            elif seconds < RECOVERED * median or self._slow.get(rank, 0) < 2:
                self._slow[rank] = 0
        return found


def _median(values: list[float]) -> float:
    """As of `statistics`, which is slow to import."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2.0
