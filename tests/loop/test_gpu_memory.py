"""The hint at a larger micro-batch after the first steps on a GPU, and what is said where none fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkit.config.load import load
from llmkit.config.memory import show_bytes
from llmkit.errors import RunFault, UserError
from llmkit.loop.gpu_memory import MicroBatchHint, largest_micro_batch, named_where_full
from llmkit.monitor.hardware import GpuMemory
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Known, resolve_plan
from llmkit.plan.memory import memory as needed_memory
from tests.program import at_step, make_project, recorded, train

GIB = 2**30
MEMORY = GpuMemory(held=20 * GIB, peak=32 * GIB, usable=80 * GIB)


def notes(steps: int, memory: GpuMemory = MEMORY, device: str = "cuda", rank: int = 0) -> list[str]:
    found: list[str] = []
    trainer: Any = SimpleNamespace(
        mesh=Mesh(rank, 2, device=torch.device(device)),
        plan=SimpleNamespace(micro_batch_size=4, rows_per_rank=64),
        console=SimpleNamespace(note=found.append),
    )
    hint, result = MicroBatchHint(lambda _: memory), SimpleNamespace()
    for _ in range(steps):
        hint.after_step(trainer, result)
    return found


def test_it_is_given_once_after_the_second_step() -> None:
    assert notes(1) == []
    assert notes(5) == [
        "at most 32.0 GiB of 80.0 GiB of GPU memory were in use: train.micro_batch_size=16 should fit "
        "(now 4), with 4 micro-batches a step instead of 16"
    ]


def test_nothing_is_said_where_nothing_larger_fits_on_a_cpu_and_on_other_ranks() -> None:
    assert notes(5, GpuMemory(20 * GIB, 60 * GIB, 80 * GIB)) == []
    assert notes(5, device="cpu") == []
    assert notes(5, rank=1) == []


@pytest.mark.parametrize(
    ("rows", "now", "peak", "expected"),
    [(64, 4, 32, 16), (60, 4, 32, 15), (17, 1, 23, 17), (17, 1, 25, 1), (8, 8, 79, 8), (8, 4, 20, 8)],
)
def test_it_divides_the_rows_and_leaves_a_tenth_free(rows: int, now: int, peak: int, expected: int) -> None:
    found = GpuMemory(held=20 * GIB, peak=peak * GIB, usable=80 * GIB)
    assert largest_micro_batch(rows, now, found) == expected


def test_a_step_that_does_not_fit_says_what_took_the_memory_and_what_fits(tmp_path: Path) -> None:
    overrides = ["train.global_batch_size=64", "train.micro_batch_size=16", "model.hidden_size=512"]
    loaded = load(make_project(tmp_path), [*overrides, "data.sequence_length=1024"])
    plan = resolve_plan(loaded, Known(world_size=1, tokenizer_size=257, holds_out=True))
    room = needed_memory(plan).on_device // 2
    memory = GpuMemory(room // 4, room - 5, room)
    for warmed_up, kind in ((False, UserError), (True, RunFault)):
        with (
            pytest.raises(kind) as refusal,
            named_where_full(plan, torch.device("cuda"), warmed_up, "rank 2: ", lambda _: memory),
        ):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        text = str(refusal.value)
        assert text.startswith("rank 2: out of memory: CUDA out of memory. Tried to allocate 2 GiB; at most ")
        assert f"of {show_bytes(room)} were in use. A step with train.micro_batch_size 16 needs" in text
        assert "activations" in text and "more" not in text
        assert "What should fit: train.micro_batch_size=4 (needs" in text
        assert "\n" not in text


def test_the_host_may_be_full_too(project: Path) -> None:
    plan = resolve_plan(load("tiny.yaml", []), Known(world_size=1, tokenizer_size=257, holds_out=True))
    cpu = torch.device("cpu")
    full = pytest.raises(UserError, match=r"out of memory: .*can't allocate memory: you tried to allocate")
    with full, named_where_full(plan, cpu, False):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RunFault, match="memory: no memory; at most"), named_where_full(plan, cpu, True):
        raise MemoryError
    with pytest.raises(RuntimeError, match="another"), named_where_full(plan, cpu, True):
        raise RuntimeError("another")


@pytest.mark.drill(
    "D39", injection="a step asks for more memory than there is", expected="one message: what needs it"
)
def test_a_run_that_is_out_of_memory_says_so_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], measured: Any
) -> None:
    at_step(monkeypatch, 8, lambda: torch.empty(2**60, dtype=torch.uint8))
    assert train() == 1
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and "out of memory" in error[0] and "activations" in error[0]
    (fault,) = recorded("fault")
    measured("steps lost", fault["lost_steps"], "")
    assert (fault["step"], fault["saved_step"]) == (7, 5)
