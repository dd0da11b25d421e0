"""Seconds and memory of functions that take turns: A-B-C, C-B-A, A-B-C, ..."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.timing import reason

ROUND_SECONDS = 0.02
"""A turn calls a function as often as takes about this long, so that the clock's grain does not count."""
CLOCK = 2e9
"""Cycles a second at the most, of a GPU that waits."""


@dataclass
class Figures:
    """What a function took. seconds: of a call, each round. peak: bytes above what was held before it."""

    seconds: list[float] = field(default_factory=list)
    peak: int = 0
    failed: str | None = None

    @property
    def median(self) -> float:
        """Seconds of a call, in the middle of all rounds."""
        return statistics.median(self.seconds)

    def show(self) -> str:
        """Microseconds: median (least to most)."""
        if self.failed is not None:
            return self.failed
        middle, least, most = (1e6 * each for each in (self.median, min(self.seconds), max(self.seconds)))
        return f"{middle:,.0f} ({least:,.0f} to {most:,.0f})"


def compare(calls: Mapping[str, Callable[[], Any]], device: torch.device, rounds: int) -> dict[str, Figures]:
    """Each function's figures; one that raises has the reason in their place, and the others go on.

    The first two calls of each, in which things are compiled and allocated, are not timed.
    """
    found = {name: Figures() for name in calls}
    repeats, waits = dict[str, int](), dict[str, float]()
    for name, call in calls.items():
        try:
            call()
            found[name].peak = _peak_of(call, device)
            once = seconds_of(call, 1, device)
            repeats[name] = max(1, min(1000, round(ROUND_SECONDS / max(once, 1e-7))))
            waits[name] = host_seconds(call, device)
        except Exception as error:
            found[name].failed = "did not run: " + reason(error)
            release(device)
    for number in range(rounds):
        order = list(repeats) if number % 2 == 0 else list(reversed(repeats))
        for name in order:
            found[name].seconds.append(seconds_of(calls[name], repeats[name], device, waits[name]))
    return found


def seconds_of(call: Callable[[], Any], repeats: int, device: torch.device, host: float = 0.0) -> float:
    """Seconds of a call, the mean of `repeats`; on a GPU between two events of its stream.

    host: seconds that the host takes to launch a call. Before the first event the GPU waits as long as for
    all of them, so that it is the GPU that is timed: it finds all kernels launched.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - begin) / repeats
    new_event: Any = torch.cuda.Event
    begin, end = new_event(enable_timing=True), new_event(enable_timing=True)
    torch.cuda._sleep(int(host * repeats * CLOCK) + 1)
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    torch.cuda.synchronize(device)
    return begin.elapsed_time(end) / 1e3 / repeats


def host_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds until a call returns; on a GPU its kernels may run later."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def release(device: torch.device) -> None:
    """Gives back the memory that a failed call held."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()


def _peak_of(call: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors at the most while it runs, beyond those before; 0 where nothing counts them."""
    if device.type != "cuda":
        call()
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
