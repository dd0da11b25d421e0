"""Turns of a GPU's benchmark: how long, how large, in a process of their own, and the clock of a GPU."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

import pytest
import torch

from benchmarks import gpu
from benchmarks.on_gpu import steps, turn
from benchmarks.on_gpu.measure import compare
from benchmarks.on_gpu.setting import OUT_OF_TIME, Setting
from benchmarks.on_gpu.turn import Task, largest
from benchmarks.peers import Step
from benchmarks.workloads import Workload, make_batches, make_workload
from llmkit.batch import Batch

CPU = torch.device("cpu")


def setting(**changes: object) -> Setting:
    options = gpu.parse(["--toy", "--rounds", "1"])
    made = gpu.make_setting(options)
    return Setting(**{**vars(made), **changes})  # type: ignore[arg-type]


def test_what_there_is_no_time_for_is_said() -> None:
    late = setting(ends=time.monotonic() - 1.0)
    assert {row.cells["tokens/s"] for row in steps.zero(late)} == {OUT_OF_TIME}


@pytest.mark.exhaustive
def test_a_turn_in_a_process_of_its_own_gives_its_figures_or_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alone = setting(isolated=True)
    task = Task("llmkit", "toy", 4, "fp32", 0.0)

    outcome = steps.turn(task, alone)
    assert outcome.failed is None
    assert (outcome.micro_rows, len(outcome.losses)) == (4, 5)
    impossible = Task("llmkit", "toy", 4, "fp32", 0.0, {"train": {"gradient_clipping": -1.0}})
    assert turn.measure(impossible, CPU).failed.startswith("ValidationError")  # type: ignore[union-attr]
    monkeypatch.setattr(sys, "executable", "false")
    assert steps.turn(task, alone).failed == "exit code 1: RuntimeError: printed no result"


@pytest.mark.parametrize(
    ("fits", "guess", "tried", "found"),
    [
        (16, 4, [4, 8, 16], 16),
        (4, 16, [16, 8, 4], 4),
        (4, 4, [4, 8], 4),
        (1, 16, [16, 8, 4, 2, 1], 1),
        (0, 2, [2, 1], None),
        (99, 16, [16], 16),
    ],
)
def test_the_largest_micro_batch_is_found_by_trying(
    fits: int, guess: int, tried: list[int], found: int | None
) -> None:
    attempts: list[int] = []

    def attempt(rows: int) -> tuple[int, int] | None:
        attempts.append(rows)
        return (0, rows) if rows <= fits else None

    assert largest([1, 2, 4, 8, 16], guess, attempt, None) == found
    assert attempts == tried


def test_what_cannot_fit_by_proportion_is_not_tried() -> None:
    attempts: list[int] = []

    def attempt(rows: int) -> tuple[int, int]:
        attempts.append(rows)
        return 40, 40 + 10 * rows

    assert largest([1, 2, 4, 8], 1, attempt, total=100) == 4
    assert attempts == [1, 2, 4]


def test_functions_take_turns_and_one_that_fails_says_why() -> None:
    order: list[str] = []
    failing = iter([None])

    def fail() -> None:
        if next(failing, 1):
            raise ValueError("no kernel for this")

    calls = {"a": lambda: (order.append("a"), time.sleep(0.03)), "bad": fail,
             "b": lambda: (order.append("b"), time.sleep(0.03))}  # fmt: skip
    found = compare(calls, CPU, rounds=3)

    assert found["bad"].failed == "did not run: ValueError: no kernel for this"
    assert [len(found[name].seconds) for name in ("a", "b")] == [3, 3]
    assert "".join(order[-6:]) == "abbaab"
    assert found["a"].median >= 0.03


class Event:
    """A CUDA event on a clock that each call of a kernel advances."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.clock

    def elapsed_time(self, later: Event) -> float:
        return later.at - self.at


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """torch.cuda without a GPU; what is returned holds the bytes that are allocated, and the most."""
    memory = {"now": 100, "most": 0, "slept": 0}

    def reset(device: torch.device) -> None:
        memory["most"] = memory["now"]

    for name, stand_in in {
        "Event": Event,
        "_sleep": lambda cycles: memory.update(slept=cycles),
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "is_available": lambda: True,
        "reset_peak_memory_stats": reset,
        "memory_allocated": lambda device: memory["now"],
        "max_memory_allocated": lambda device: memory["most"],
        "max_memory_reserved": lambda device: memory["most"],
        "mem_get_info": lambda device: (900, 1000),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    return memory


def test_a_gpu_is_timed_by_its_events_and_its_memory_is_counted(cuda: dict[str, int]) -> None:
    def kernel() -> None:
        Event.clock += 0.5  # ms
        time.sleep(0.001)
        cuda["most"] = max(cuda["most"], cuda["now"] + 40)

    found = compare({"kernel": kernel}, torch.device("cuda"), rounds=3)
    assert found["kernel"].seconds == pytest.approx([0.0005] * 3)
    assert found["kernel"].peak == 40
    assert cuda["slept"] > 40 * 0.001 * 1.5e9, "the GPU does not wait until 40 calls are launched"


def test_the_largest_micro_batch_on_a_gpu(cuda: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """40 bytes a row beside 100 that are kept: 16 rows fit into 1,000, but not 32."""
    work = make_workload("toy", CPU)
    monkeypatch.setattr(
        turn, "make_workload", lambda name, device, changes: make_workload(name, CPU, changes)
    )
    monkeypatch.setattr(turn, "make_batches", lambda work, device: make_batches(work, CPU))
    monkeypatch.setattr(turn, "clocks", lambda device: "1980 MHz")
    monkeypatch.setattr(turn, "release", lambda: None)

    def build(contender: str, work: Workload, *_: object) -> Step:
        def step(micro_batches: Sequence[Batch]) -> torch.Tensor:
            Event.clock += 20.0
            needed = cuda["now"] + 40 * len(micro_batches[0].tokens)
            if needed > 1000:
                raise torch.OutOfMemoryError("CUDA out of memory")
            cuda["most"] = max(cuda["most"], needed)
            return torch.tensor(6.0)

        return step

    monkeypatch.setattr(turn, "build", build)
    for guess in (1, 64):
        outcome = turn.measure(Task("llmkit", work.name, 64, "bf16", 0.1, guess=guess), torch.device("cuda"))
        assert outcome.failed is None
        assert outcome.micro_rows == 16
        assert outcome.seconds == pytest.approx([0.02] * 5)
        assert outcome.peak == pytest.approx(740 / 2**30)
        assert outcome.clocks == "1980 MHz"


def test_a_task_survives_its_way_to_the_process() -> None:
    task = Task("llmkit", "toy", 4, "bf16", 1.5, {"parallel": {"zero_stage": 1}}, micro_rows=2, steps=3)
    assert Task(**json.loads(task.to_json())) == task
