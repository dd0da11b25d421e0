"""All contenders at one workload: each alone in its own process first, then side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.alone import Alone, run_alone
from benchmarks.contenders import build, contender_shape
from benchmarks.table import Result, Row
from benchmarks.timing import Runner, free_memory_gib, reason, release, take_turns
from benchmarks.workloads import Workload, make_batches
from llmkit.batch import Batch

MEMORY_SHARE = 0.85
"""Share of the free memory that contenders side by side may need."""


@dataclass(frozen=True)
class Plan:
    """How to measure: see the command's options."""

    contenders: Sequence[str]
    warmup: int
    steps: int
    rounds: int
    precision: str
    device: torch.device
    compile_caches: Path
    """Folder that gets a folder of compiled code for each workload and contender."""


@dataclass(frozen=True)
class Timed:
    """A contender's rounds (seconds of each timed step), and its first and last loss."""

    rounds: tuple[tuple[float, ...], ...]
    losses: tuple[float, float]


def compare(work: Workload, plan: Plan, progress: Callable[[str], None]) -> Result:
    """Measures every contender of the plan; one that fails says why, and the others go on."""
    alone: dict[str, Alone] = {}
    for name in plan.contenders:
        alone[name] = run_alone(work.name, name, plan.precision, plan.compile_caches / work.name / name)
        progress(f"{work.name}, {name} alone: {alone[name].failed or f'{alone[name].peak_gib:.2f} GiB'}")
    failed = {name: each.failed for name, each in alone.items() if each.failed is not None}
    able = [name for name in plan.contenders if name not in failed]
    together = len(able) < 2 or fits([alone[name] for name in able], free_memory_gib(plan.device))
    timed: dict[str, Timed] = {}
    for group in [able] if together else [[name] for name in able]:
        progress(f"{work.name}: timing {', '.join(group)}")
        timed |= _time_group(group, work, plan, failed)
        release()
    rows = [_row(name, work, alone[name], failed.get(name), timed.get(name)) for name in plan.contenders]
    notes = [f"{name}: {note}" for name, each in alone.items() for note in each.notes]
    return Result(work, rows, together, notes)


def fits(alone: Sequence[Alone], free_gib: float) -> bool:
    """Whether contenders fit into memory side by side: all that they keep, and the hungriest one's step."""
    kept = sum(each.resident_gib for each in alone)
    step = max((each.peak_gib - each.resident_gib for each in alone), default=0.0)
    return kept + step <= MEMORY_SHARE * free_gib


def _time_group(group: Sequence[str], work: Workload, plan: Plan, failed: dict[str, str]) -> dict[str, Timed]:
    """Builds and compiles all of the group, then lets them take turns; failures go into `failed`."""
    batches = make_batches(work, plan.device)
    runners: dict[str, Runner] = {}

    def drop(name: str, error: Exception) -> None:
        failed[name] = reason(error)

    for name in group:
        try:
            runners[name] = _start(name, work, plan, batches)
        except Exception as error:
            drop(name, error)
    take_turns(runners, plan.warmup, plan.steps, plan.rounds, drop)
    return {
        name: Timed(tuple(map(tuple, runner.rounds)), (float(runner.losses[0]), float(runner.losses[-1])))
        for name, runner in runners.items()
    }


def _start(name: str, work: Workload, plan: Plan, batches: Sequence[Sequence[Batch]]) -> Runner:
    """The contender after its first step, with everything compiled."""
    with _compile_cache(plan.compile_caches / work.name / name):
        step = build(name, work, plan.precision, plan.device, lambda note: None)
        runner = Runner(step, batches, plan.device)
        runner.turn(1)
    return runner


def _row(name: str, work: Workload, alone: Alone, failed: str | None, timed: Timed | None) -> Row:
    shape = contender_shape(name, work.shape)
    if timed is None:
        return Row(name, shape, failed=failed or "no figures")
    return Row(name, shape, None, timed.rounds, timed.losses, alone.peak_gib, alone.first_step_seconds)


@contextmanager
def _compile_cache(folder: Path) -> Iterator[None]:
    """Lets torch.compile find and keep its code in `folder`."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    os.environ[variable] = str(folder)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = before
