"""One contender in a process of its own: its peak memory, and how long its first step takes.

`python -m benchmarks.alone SHAPE CONTENDER PRECISION` prints one JSON object as its last line. Only
a fresh process can tell the resident memory of one contender, starts without anything compiled, and
can run out of memory without taking the others with it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.contenders import build
from benchmarks.timing import Runner, first_step_seconds, reason
from benchmarks.workloads import ROOT, make_batches, make_workload
from llmkit.device import choose_device
from llmkit.monitor.hardware import peak_memory_gib

LONGEST_SECONDS = 1800
"""A contender that is not through with its first steps by then is given up."""


@dataclass(frozen=True)
class Alone:
    """What a contender needs by itself, or why it cannot run.

    peak_gib: as `llmkit.monitor.hardware.peak_memory_gib` counts it. resident_gib: what is left of it
    between steps (on a CPU the peak once more: a process rarely gives memory back).
    """

    failed: str | None = None
    first_step_seconds: float = 0.0
    peak_gib: float = 0.0
    resident_gib: float = 0.0
    notes: tuple[str, ...] = ()


def run_alone(workload_name: str, contender: str, precision: str, compile_cache: Path) -> Alone:
    """Measures a contender in a fresh process whose compiled code is kept in `compile_cache`."""
    command = [sys.executable, "-m", "benchmarks.alone", workload_name, contender, precision]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(compile_cache)}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONGEST_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Alone(failed=f"first steps not done after {LONGEST_SECONDS} s")
    return read_outcome(done.returncode, done.stdout, done.stderr)


def read_outcome(code: int, output: str, errors: str) -> Alone:
    """What the process printed, or how it died."""
    if code < 0:
        hint = " (the system ran out of memory?)" if -code == signal.SIGKILL else ""
        return Alone(failed=f"killed by {signal.Signals(-code).name}{hint}")
    if code > 0:
        last = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
        return Alone(failed=reason(RuntimeError(last[0])).removeprefix("RuntimeError: "))
    try:
        values = json.loads(output.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        return Alone(failed="printed no result")
    return Alone(**values | {"notes": tuple(values["notes"])})


def measure_here(workload_name: str, contender: str, precision: str, device: torch.device) -> Alone:
    """Builds the contender and takes three steps: compile, allocate the moments, and one as all others."""
    notes: list[str] = []
    try:
        workload = make_workload(workload_name, device)
        step = build(contender, workload, precision, device, notes.append)
        runner = Runner(step, make_batches(workload, device), device)
        seconds = first_step_seconds(runner)
        runner.turn(2)
    except Exception as error:
        return Alone(failed=reason(error), notes=tuple(notes))
    peak = peak_memory_gib(device)
    resident = torch.cuda.memory_allocated(device) / 2**30 if device.type == "cuda" else peak
    return Alone(None, seconds, peak, resident, tuple(notes))


if __name__ == "__main__":
    outcome = measure_here(sys.argv[1], sys.argv[2], sys.argv[3], choose_device())
    print(json.dumps(dataclasses.asdict(outcome)))
