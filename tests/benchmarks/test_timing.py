"""Turns, failures and memory: how contenders share one machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.alone import Alone, read_outcome
from benchmarks.compare import fits
from benchmarks.timing import Runner, free_memory_gib, reason, take_turns
from llmkit.batch import Batch

CPU = torch.device("cpu")
BATCHES = [[Batch(torch.full((1, 1), i), torch.zeros(1, 1))] for i in range(3)]


class Recorder:
    """A contender that writes down its name and batch, and can fail at one of its steps."""

    def __init__(self, name: str, log: list[tuple[str, int]], fails_at: int = -1) -> None:
        self.name, self.log, self.fails_at, self.count = name, log, fails_at, 0

    def __call__(self, micro_batches: Sequence[Batch]) -> Tensor:
        (batch,) = micro_batches
        if self.count == self.fails_at:
            raise RuntimeError("CUDA out of memory")
        self.count += 1
        self.log.append((self.name, int(batch.tokens)))
        return torch.tensor(float(self.count))


def runners(log: list[tuple[str, int]], **fails_at: int) -> dict[str, Runner]:
    return {name: Runner(Recorder(name, log, at), BATCHES, CPU) for name, at in fails_at.items()}


def test_contenders_take_turns_and_see_the_same_batches() -> None:
    log: list[tuple[str, int]] = []
    both = runners(log, a=-1, b=-1)

    take_turns(both, warmup=1, steps=2, rounds=2, failed=lambda name, error: None)

    assert "".join(name for name, _ in log) == "ab" + "aaabbb" * 2
    assert [batch for name, batch in log if name == "a"] == [0, 1, 2, 0, 1, 2, 0]
    assert [batch for name, batch in log if name == "b"] == [0, 1, 2, 0, 1, 2, 0]


def test_a_rounds_first_step_is_not_timed_but_its_loss_counts() -> None:
    (runner,) = runners([], a=-1).values()
    runner.timed_turn(2)

    assert [len(seconds) for seconds in runner.rounds] == [2]
    assert [float(loss) for loss in runner.losses] == [1.0, 2.0, 3.0]


def test_a_contender_that_fails_leaves_the_others_their_turns() -> None:
    log: list[tuple[str, int]] = []
    both = runners(log, a=4, b=-1)
    failed: dict[str, str] = {}

    take_turns(both, 1, 2, 2, lambda name, error: failed.update({name: reason(error)}))

    assert list(both) == ["b"]
    assert failed == {"a": "RuntimeError: CUDA out of memory"}
    assert "".join(name for name, _ in log) == "ab" + "aaabbb" + "bbb"


def test_a_reason_is_one_line_without_paths() -> None:
    error = ImportError("libcudart.so: cannot open (/home/someone/venv/lib/x.so)\nsecond line")
    assert reason(error) == "ImportError: libcudart.so: cannot open (...)"
    assert reason(MemoryError()) == "MemoryError"
    assert len(reason(RuntimeError("x" * 1000))) == 200


@pytest.mark.parametrize(
    ("code", "output", "errors", "message"),
    [
        (-9, "", "", "killed by SIGKILL (the system ran out of memory?)"),
        (-11, "", "", "killed by SIGSEGV"),
        (1, "", "Traceback ...\nValueError: odd /opt/lib/python/site", "ValueError: odd ..."),
        (3, "", "", "exit code 3"),
        (0, "a library's chatter\n", "", "printed no result"),
    ],
)
def test_a_process_that_dies_says_why(code: int, output: str, errors: str, message: str) -> None:
    assert read_outcome(code, output, errors).failed == message


def test_contenders_run_side_by_side_only_if_their_state_and_the_largest_step_fit() -> None:
    each = [Alone(peak_gib=30.0, resident_gib=20.0), Alone(peak_gib=25.0, resident_gib=20.0)]
    assert fits(each, free_gib=60.0)
    assert not fits(each, free_gib=55.0)
    assert fits([], free_gib=0.0)


def test_free_memory_is_what_the_system_can_give(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:   2097152 kB\n")
    assert free_memory_gib(CPU, meminfo) == 2.0
    assert free_memory_gib(CPU, tmp_path / "missing") == float("inf")
