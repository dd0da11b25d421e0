"""Seconds of the parts of a step: marked while it is queued, read when its scalars are."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Name = Literal["communication", "optimizer"]
Mark = float | torch.cuda.Event


class StepParts:
    """Where parts of a step begin and end: events in the stream of a GPU, else times of the clock.

    communication: what is not hidden behind the backward pass; on a CPU also the wait for slower ranks.
    Nothing here waits for the device. clock: seconds from any origin.
    """

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._clock = device, clock
        self._parts: list[tuple[Name, Mark, Mark]] = []
        self._inside = False

    @contextmanager
    def part(self, name: Name) -> Iterator[None]:
        """What is queued in here is part `name`; on a CPU, what is done in here. Within another part: its."""
        if self._inside:
            yield
            return
        self._inside, begin = True, self._mark()
        try:
            yield
        finally:
            self._inside = False
            self._parts.append((name, begin, self._mark()))

    def _mark(self) -> Mark:
        if self._device.type != "cuda":
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def read(self) -> dict[str, float]:
        """Seconds of each part; of a GPU only once it has finished the step."""
        found: defaultdict[str, float] = defaultdict(float)
        for name, begin, end in self._parts:
            found[name] += _seconds(begin, end)
        return dict(found)


def _seconds(begin: Mark, end: Mark) -> float:
    if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        return begin.elapsed_time(end) / 1000.0
    assert isinstance(begin, float) and isinstance(end, float)
    return end - begin
