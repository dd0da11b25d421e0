"""The hint at a larger micro-batch after the first steps on a GPU, and what is said where none fits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkit.errors import RunFault, UserError
from llmkit.loop.gpu_memory import MicroBatchHint, largest_micro_batch, named_where_full
from llmkit.monitor.hardware import GpuMemory
from llmkit.parallel.mesh import Mesh

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


@pytest.mark.parametrize(
    ("warmed_up", "kind", "now", "recompute", "advice"),
    [
        (
            False,
            UserError,
            8,
            "none",
            "train.micro_batch_size=6, or parallel.activation_checkpointing=selective, or",
        ),
        (
            True,
            RunFault,
            8,
            "selective",
            "train.micro_batch_size=6, or parallel.activation_checkpointing=full, or",
        ),
        (False, UserError, 1, "full", "more sharing (parallel.zero_stage, parallel.tensor_parallel_size)"),
    ],
)
def test_a_step_that_does_not_fit_says_what_to_try(
    warmed_up: bool, kind: type[Exception], now: int, recompute: str, advice: str
) -> None:
    layout = SimpleNamespace(activation_checkpointing=recompute)
    plan: Any = SimpleNamespace(micro_batch_size=now, rows_per_rank=24, layout=layout)
    with pytest.raises(kind) as refusal, named_where_full(plan, warmed_up):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
    assert f"train.micro_batch_size {now} does not fit" in str(refusal.value)
    assert "(CUDA out of memory. Tried to allocate 2 GiB.); try " + advice in str(refusal.value)
