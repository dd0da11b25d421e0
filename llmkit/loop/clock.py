"""Time of training proper: without evaluations and saves, and the share spent waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Seconds since the last reading; one pair of calls a step, no device is waited for."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._waited = self._paused = 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here is no training time: an evaluation, a save."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """(seconds of training, seconds of them spent waiting for data) since the last reading."""
        now = time.perf_counter()
        reading = now - self._since - self._paused, self._waited
        self._since, self._waited, self._paused = now, 0.0, 0.0
        return reading
