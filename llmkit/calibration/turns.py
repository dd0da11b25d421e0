"""Times several pieces of work in turns, by the processor's time of this thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

ROUNDS = 7
LEAST = 0.005
"""Seconds that a piece of work is repeated for in a round, at least."""


def seconds_in_turns(work: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each piece, those of its fastest round.

    Others share the caches and the memory of a machine, and slow a thread at times: the fastest round is the
    one that was slowed least, and of pieces that take turns each finds a quiet one.
    """
    times = {name: max(1, round(LEAST / max(1e-7, _once(each, 2)))) for name, each in work.items()}
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, each in work.items():
            found[name].append(_once(each, times[name]))
    return {name: min(seconds) for name, seconds in found.items()}


def _once(work: Callable[[], object], times: int) -> float:
    begin = time.thread_time()
    for _ in range(times):
        work()
    return (time.thread_time() - begin) / times
