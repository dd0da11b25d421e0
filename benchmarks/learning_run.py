"""One training run of a contender, and what a step of each costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from benchmarks import learning_contenders
from benchmarks.learning_contenders import Contender, Task
from benchmarks.learning_sizes import Text
from benchmarks.timing import release
from llmkit.batch import Batch
from llmkit.monitor.flops import bits_per_byte

CPU = torch.device("cpu")
UNTIMED = 2
"""First steps, in which code is compiled."""
TURNS, TURN_STEPS = 6, 5


@dataclass(frozen=True)
class Result:
    """What a run gave.

    bits_per_byte: of the held-out text; None where the run has diverged, or nothing was trained.
    step_seconds: processor seconds of a step, all threads together, the median of the steps.
    """

    bits_per_byte: float | None
    step_seconds: float
    parameters: int


def train(name: str, task: Task) -> Result:
    """Trains a contender for `task.steps` steps and evaluates it."""
    release()
    contender = learning_contenders.build(name, task)
    seconds = [_timed_step(contender, rows.to(CPU)) for rows in task.text.training(task.seed, task.steps)]
    bits = evaluate(contender, task.text)
    timed = seconds[UNTIMED:] or seconds
    return Result(bits if math.isfinite(bits) else None, median(timed), contender.parameters)


def evaluate(contender: Contender, text: Text) -> float:
    """Bits per byte of the held-out text, as `llmkit evaluate` counts them."""
    nats = sum(float(contender.nats(rows.to(CPU))) for rows in text.heldout)
    bits = bits_per_byte(nats, text.heldout_bytes)
    assert bits is not None
    return bits


def measure_steps(tasks: Mapping[str, Task], failed: Callable[[str, Exception], None]) -> dict[str, Result]:
    """What a step of each contender costs; they take turns, A B C A B C ...

    So what else the machine does slows all alike. A contender that cannot run is handed to `failed`.
    """
    release()
    running: dict[str, tuple[Contender, list[Batch]]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for name, task in tasks.items():
        batches = [rows.to(CPU) for rows in task.text.training(task.seed, TURN_STEPS)]
        try:
            contender = learning_contenders.build(name, task)
            for batch in batches[:UNTIMED]:
                contender.step(batch)
            running[name] = contender, batches
        except Exception as error:
            failed(name, error)
    for _ in range(TURNS):
        for name, (contender, batches) in running.items():
            contender.step(batches[0])  # fills the caches anew after the other contenders
            seconds[name] += map(partial(_timed_step, contender), batches)
    return {
        name: Result(None, median(seconds[name]), contender.parameters)
        for name, (contender, _) in running.items()
    }


def _timed_step(contender: Contender, batch: Batch) -> float:
    begin = time.process_time()
    contender.step(batch)
    return time.process_time() - begin
