"""What a run is doing at the moment, and how long each phase has taken."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Name = Literal["start", "data", "compile", "step", "evaluate", "save", "other"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class Span:
    """A phase that is under way.

    began: by the clock of `Phases`. limit: seconds after which something must be wrong; None = any time.
    """

    name: Name
    began: float
    limit: float | None = None


class Phases:
    """Records spans: start (all before the first step), data (waiting for a batch), compile (a step in which
    torch.compile is at work), step, evaluate and save. What is in no span is "start" until a span of data
    or of a step has begun, and "other" from then on, so that every second is that of one phase.

    A span inside another interrupts it: no second counts twice. Nothing here waits for a device.
    clock: seconds from any origin. began: when the process was started, by the clock; None = now.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter, began: float | None = None) -> None:
        self._clock = clock
        self._resumed = clock() if began is None else began
        self._between: Name = "start"
        self.current: Span | None = None
        self.seconds: defaultdict[Name, float] = defaultdict(float)
        """Of each phase in this process so far; what is under way counts when it ends."""
        self._read: dict[Name, float] = {}
        self.annotate: Callable[[str], AbstractContextManager[Any]] = nullcontext
        """What each span runs in, made of its name: a mark in a profiler's trace."""
        self.beat: Callable[[Name], None] = lambda name: None
        """Called with the phase that begins, or goes on, whenever a span begins or ends."""

    @contextmanager
    def span(self, name: Name, limit: float | None = None) -> Iterator[None]:
        """What happens in here is phase `name`."""
        outer = self.current
        began = self._count()
        if name in ("data", "compile", "step"):
            self._between = "other"
        self.current = Span(name, began, limit)
        self.beat(name)
        try:
            with self.annotate(name):
                yield
        finally:
            self._count()
            self.current = outer
            self.beat(self._between if outer is None else outer.name)

    def rename(self, name: Name) -> None:
        """What is under way turns out to be another phase."""
        assert self.current is not None
        self.current = replace(self.current, name=name)

    def totals(self) -> dict[Name, float]:
        """Seconds of every phase so far, what is under way included; their sum is the age of the process."""
        self._count()
        return {name: self.seconds.get(name, 0.0) for name in NAMES}

    def read(self) -> dict[Name, float]:
        """Seconds of every phase since the last reading."""
        totals, before = self.totals(), self._read
        self._read = totals
        return {name: total - before.get(name, 0.0) for name, total in totals.items()}

    def _count(self) -> float:
        """Counts the time since the last call; returns the clock's."""
        now = self._clock()
        self.seconds[self._between if self.current is None else self.current.name] += now - self._resumed
        self._resumed = now
        return now
