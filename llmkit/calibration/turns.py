"""Times several pieces of work in turns, by the processor's time of this thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

ROUNDS = 5
LEAST = 0.003
"""Seconds that a piece of work is repeated for in a round, at least."""


def seconds_in_turns(work: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each piece, the lower quartile of its rounds.

    Others share the caches and the memory of a machine, and slow a thread by turns: pieces that take turns
    are slowed alike. What is near the fastest was slowed least; the very fastest may be an accident.
    """
    times = {name: max(1, round(LEAST / max(1e-7, _once(each, 2)))) for name, each in work.items()}
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, each in work.items():
            found[name].append(_once(each, times[name]))
    return {name: sorted(seconds)[(len(seconds) - 1) // 4] for name, seconds in found.items()}


def _once(work: Callable[[], object], times: int) -> float:
    begin = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - begin) / times
