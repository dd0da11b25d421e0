"""Seconds a training step takes, contenders taking turns, and what one needs when it runs alone."""

from __future__ import annotations

import gc
import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers import Step
from llmkit.batch import Batch


@dataclass
class Runner:
    """A contender under way: it sees batch 0, 1, 2, ... whatever the turns it takes them in.

    losses: of every step so far, on the device. rounds: seconds of each timed step of each round.
    """

    step: Step
    batches: Sequence[Sequence[Batch]]
    device: torch.device
    losses: list[Tensor] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)

    def turn(self, steps: int) -> list[float]:
        """Takes `steps` training steps; returns the seconds of each, in which a GPU's queue never drains."""
        if self.device.type == "cuda":
            new_event: Any = torch.cuda.Event
            events = [new_event(enable_timing=True) for _ in range(steps + 1)]
            events[0].record()
            for event in events[1:]:
                self._step()
                event.record()
            torch.cuda.synchronize(self.device)
            return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(events)]
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            self._step()
            seconds.append(time.perf_counter() - begin)
        return seconds

    def timed_turn(self, steps: int) -> None:
        """One round: a step to fill the caches anew after the other contenders, then `steps` timed ones."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks cut to the other contenders' sizes
        self.rounds.append(self.turn(1 + steps)[1:])

    def _step(self) -> None:
        self.losses.append(self.step(self.batches[len(self.losses) % len(self.batches)]))


def first_step_seconds(runner: Runner) -> float:
    """Wall time of the first step, with all that is compiled in it (an event would not see the host)."""
    begin = time.perf_counter()
    runner.turn(1)
    return time.perf_counter() - begin


def take_turns(
    runners: dict[str, Runner], warmup: int, steps: int, rounds: int, failed: Callable[[str, Exception], None]
) -> None:
    """Warm-up, then rounds A-B-C-A-B-C, so that a disturbance of the machine hits all alike.

    A runner that raises is handed to `failed` and takes no further turns.
    """
    for number in range(rounds + 1):
        for name in list(runners):
            try:
                if number == 0:
                    runners[name].turn(warmup)
                else:
                    runners[name].timed_turn(steps)
            except Exception as error:
                del runners[name]
                failed(name, error)


def reason(error: BaseException) -> str:
    """Why something failed, in one short line without paths of this machine."""
    lines = str(error).strip().splitlines() or [""]
    text = re.sub(r"(?:/[\w.+@-]+){2,}/?", "...", lines[0])
    return f"{type(error).__name__}: {text}"[:200].rstrip(": ")


def release() -> None:
    """Frees what deleted contenders held, compiled code too."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def free_memory_gib(device: torch.device, meminfo: Path = Path("/proc/meminfo")) -> float:
    """Memory that can still be taken, GiB; infinite where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / 2**30
    try:
        available = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), flags=re.MULTILINE)
    except OSError:
        available = None
    return int(available[1]) / 2**20 if available else float("inf")
