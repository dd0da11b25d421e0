"""A whole training step of one contender: the micro-batch that fits, then its steps, in a process of its own.

`benchmarks/gpu.py --turn JSON` prints one JSON object as its last line.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch

from benchmarks.contenders import build
from benchmarks.on_gpu.profiling import kernel_times
from benchmarks.on_gpu.report import clocks
from benchmarks.timing import Runner, reason, release
from benchmarks.workloads import Workload, make_batches, make_workload
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.rank_info import RankInfo
from llmkit.parallel.world import process_group

FEWEST, MOST = 2, 20
"""Timed steps of a turn, however long one takes."""
USABLE = 0.94
"""Share of a GPU's memory that may be in use before a larger micro-batch is not tried."""


@dataclass(frozen=True)
class Task:
    """What to measure. changes: of settings, by section. rows: of a step.

    micro_rows: of a micro-batch; None = the most that fit, the search beginning at `guess`. seconds: about
    how long the timed steps take. steps: exactly so many, without warm-up, for the sake of their losses.
    profile: whether each kernel's time is taken in one more step.
    """

    contender: str
    workload: str
    rows: int
    precision: str
    seconds: float
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    micro_rows: int | None = None
    guess: int = 1
    steps: int | None = None
    profile: bool = False

    def to_json(self) -> str:
        """For the command line of the process."""
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True)
class Outcome:
    """What a turn gave. seconds: of each timed step. peak: GiB. kernels: name, seconds, calls in a step."""

    failed: str | None = None
    micro_rows: int = 0
    first_step: float = 0.0
    seconds: Sequence[float] = ()
    losses: Sequence[float] = ()
    peak: float = 0.0
    clocks: str = ""
    notes: Sequence[str] = ()
    kernels: Sequence[tuple[str, float, int]] = ()


def measure(task: Task, device: torch.device) -> Outcome:
    """The outcome of the task; whatever goes wrong is its reason."""
    notes: list[str] = []
    try:
        with _world(task) as mesh:
            return _measure(task, mesh, device, notes)
    except Exception as error:
        return Outcome(failed=reason(error), notes=notes)
    finally:
        if device.type == "cuda":
            release()


@contextmanager
def _world(task: Task) -> Iterator[Mesh]:
    """The mesh of this process alone; with a process group where an engine needs one."""
    parallel = task.changes.get("parallel", {})
    if not parallel.get("zero_stage"):
        yield Mesh()
        return
    with process_group(RankInfo(), timedelta(minutes=10), needs_group=True) as joined:
        yield joined.split()


def _measure(task: Task, mesh: Mesh, device: torch.device, notes: list[str]) -> Outcome:
    micro_rows = task.micro_rows if device.type == "cuda" else task.micro_rows or task.rows
    if micro_rows is None:
        candidates = [n for n in range(1, task.rows + 1) if task.rows % n == 0]
        total = torch.cuda.mem_get_info(device)[1]

        def attempt(rows: int) -> tuple[int, int] | None:
            try:
                return _attempt(task, mesh, device, rows)
            finally:
                release()

        micro_rows = largest(candidates, task.guess, attempt, total)
        if micro_rows is None:
            return Outcome(failed="one row does not fit into the memory", notes=notes)
    work = _workload(task, micro_rows, device)
    step = build(task.contender, work, task.precision, device, notes.append, mesh)
    runner = Runner(step, make_batches(work, device), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    runner.turn(1)
    first_step = time.perf_counter() - begin
    seconds = runner.turn(task.steps - 1) if task.steps else _timed(runner, task.seconds)
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
    losses = [float(loss) for loss in runner.losses]
    kernels = kernel_times(lambda: runner.turn(1), device) if task.profile else []
    return Outcome(None, micro_rows, first_step, seconds, losses, peak, clocks(device), notes, kernels)


def _timed(runner: Runner, seconds: float) -> list[float]:
    """A step to warm up, then as many as fit into the seconds."""
    once = runner.turn(2)[1]
    return runner.turn(max(FEWEST, min(MOST, round(seconds / max(once, 1e-6)))))


def largest(
    candidates: Sequence[int], guess: int, attempt: Callable[[int], tuple[int, int] | None], total: int | None
) -> int | None:
    """The largest of the candidates (ascending) that fits, found by trying; None where none does.

    attempt: gives the bytes that are kept between steps and the most in use, or None where memory ran out.
    Above what fits the next one is tried only if its activations, in proportion, leave room in `total`.
    """
    index = max((i for i, n in enumerate(candidates) if n <= guess), default=0)
    found = None
    while 0 <= index < len(candidates):
        measured = attempt(candidates[index])
        if measured is None and found is not None:
            break
        if measured is None:
            guess, index = 0, index - 1  # downwards from now on
            continue
        found = candidates[index]
        if guess == 0 or index + 1 == len(candidates):
            break
        kept, peak = measured
        expected = kept + (peak - kept) * candidates[index + 1] / found
        if total is not None and expected > USABLE * total:
            break
        index += 1
    return found


def _attempt(task: Task, mesh: Mesh, device: torch.device, micro_rows: int) -> tuple[int, int] | None:
    """Two steps of up to two micro-batches: the optimizer's state is there in the second."""
    torch.cuda.reset_peak_memory_stats(device)
    try:
        work = _workload(task, micro_rows, device, rows=min(task.rows, 2 * micro_rows))
        step = build(task.contender, work, task.precision, device, lambda note: None, mesh)
        batches = make_batches(work, device)
        for batch in batches[:2]:
            step(batch)
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_reserved(device)
    except torch.OutOfMemoryError:
        return None


def _workload(task: Task, micro_rows: int, device: torch.device, rows: int | None = None) -> Workload:
    changes = {section: dict(values) for section, values in task.changes.items()}
    sizes = {"global_batch_size": rows or task.rows, "micro_batch_size": micro_rows}
    changes["train"] = {**changes.get("train", {}), **sizes}
    return make_workload(task.workload, device, changes)
