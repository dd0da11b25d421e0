"""What a run is doing at the moment, and how long each phase has taken."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Name = Literal["start", "data", "compile", "step", "evaluate", "save"]
NOT_TRAINING: tuple[Name, ...] = ("start", "evaluate", "save")
"""Phases that count in no column of a training row."""


@dataclass(frozen=True)
class Span:
    """A phase that is under way.

    began: by the clock of `Phases`. limit: seconds after which something must be wrong; None = any time.
    """

    name: Name
    began: float
    limit: float | None = None


class Phases:
    """Records spans: start (all before the first step), data (waiting for a batch), compile (the first step
    of a compiled model), step, evaluate and save.

    A span inside another interrupts it: no second counts twice. Nothing here waits for a device.
    clock: seconds from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.current: Span | None = None
        self.seconds: defaultdict[Name, float] = defaultdict(float)
        """Of each phase in this process so far; what is under way counts when it ends."""
        self._resumed = self._read_at = clock()
        self._read: dict[Name, float] = {}

    @contextmanager
    def span(self, name: Name, limit: float | None = None) -> Iterator[None]:
        """What happens in here is phase `name`."""
        outer, began = self.current, self._clock()
        if outer is not None:
            self.seconds[outer.name] += began - self._resumed
        self.current, self._resumed = Span(name, began, limit), began
        try:
            yield
        finally:
            ended = self._clock()
            self.seconds[name] += ended - self._resumed
            self.current, self._resumed = outer, ended

    def read(self) -> tuple[float, float]:
        """(seconds of training, seconds of them spent waiting for data) since the last reading.

        Training is all time but that of NOT_TRAINING. Call it between two spans.
        """
        now = self._clock()
        since = {name: total - self._read.get(name, 0.0) for name, total in self.seconds.items()}
        training = now - self._read_at - sum(since.get(name, 0.0) for name in NOT_TRAINING)
        self._read_at, self._read = now, dict(self.seconds)
        return training, since.get("data", 0.0)
