"""A recording of PyTorch's profiler, and the files that are made of it."""

from __future__ import annotations

import gzip
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from llmkit.monitor.bottleneck import Bottleneck, find_bottleneck

SHOWN_OPERATORS = 25
NAME_WIDTH = 90


class Recording:
    """PyTorch's profiler, from here until `stop`: operators, and kernels of a GPU."""

    def __init__(self, device: torch.device) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints where it begins and ends
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            # Else the driver's tracing stays on, and steps stay slower (no CUDA graphs are used here).
            os.environ.setdefault("TEARDOWN_CUPTI", "1")
            activities.append(ProfilerActivity.CUDA)
        self._device, self._profiler = device, profile(activities=activities)
        self._profiler.start()
        self._wait()
        self._began, self._seconds = time.perf_counter(), 0.0

    def stop(self) -> None:
        """Ends the recording; waits for the device, so that what was recorded is whole steps."""
        self._wait()
        self._seconds = time.perf_counter() - self._began
        self._profiler.stop()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def write(self, base: Path, waiting: float, steps: int, flops: float | None) -> Bottleneck:
        """Writes BASE.json.gz (the trace), BASE.txt and BASE.summary.json; returns what bounds the steps.

        The other arguments are those of `find_bottleneck`.
        """
        base.parent.mkdir(parents=True, exist_ok=True)
        plain = base.with_name(f"{base.name}.json")
        try:
            self._profiler.export_chrome_trace(str(plain))
            content = plain.read_bytes()
        finally:
            plain.unlink(missing_ok=True)
        with gzip.open(f"{plain}.gz", "wb", compresslevel=3) as file:
            file.write(content)
        found = find_bottleneck(json.loads(content)["traceEvents"], self._seconds, waiting, steps, flops)
        base.with_name(f"{base.name}.txt").write_text("".join(f"{line}\n" for line in report(found)))
        summary = json.dumps({"verdict": found.line(), **asdict(found)}, indent=1)
        base.with_name(f"{base.name}.summary.json").write_text(summary + "\n")
        return found


def report(found: Bottleneck) -> Iterator[str]:
    """The verdict and a table of the operators that take longest."""
    whole = sum(each.microseconds for each in found.operators) or 1.0
    yield found.line()
    yield ""
    yield f"{'ms a step':>10} {'share':>7} {'calls a step':>12}  {'kind':<10}  name"
    for each in found.operators[:SHOWN_OPERATORS]:
        milliseconds, calls = each.microseconds / 1000 / found.steps, each.calls / found.steps
        share = f"{100 * each.microseconds / whole:.1f} %"
        yield f"{milliseconds:>10.3f} {share:>7} {calls:>12.4g}  {each.kind:<10}  {each.name[:NAME_WIDTH]}"
