"""All engines in one process train as the native one does, and what they wait for is counted."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from benchmarks.contenders import build
from benchmarks.on_gpu.steps import ENGINES
from benchmarks.on_gpu.turn import Task, measure
from benchmarks.workloads import make_batches, make_workload

PLAIN = {"kernels": {"compile": False}}
OTHERS: dict[str, dict[str, Any]] = {
    **{name: parallel for name, parallel in ENGINES.items() if parallel},
    "stage 2, offload": {"zero_stage": 2, "offload": "cpu"},
    "stage 3, offload": {"zero_stage": 3, "offload": "cpu"},
    "stage 3, recomputation": {"zero_stage": 3, "activation_checkpointing": "full"},
}


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")  # a process group of one process leaves it behind


def losses(precision: str, device: torch.device, changes: dict[str, Any]) -> list[float]:
    """Of four steps of two micro-batches: a small model on a GPU, a toy on a CPU."""
    name = "14m" if device.type == "cuda" else "toy"
    task = Task("llmkit", name, 4, precision, 0.0, changes, micro_rows=2, steps=4)
    outcome = measure(task, device)
    assert outcome.failed is None, outcome.failed
    return list(outcome.losses)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.exhaustive)])
def test_engines_train_alike(device: torch.device, precision: str) -> None:
    native = losses(precision, device, PLAIN)
    assert native[-1] < native[0]
    # A GPU's backward pass of attention in fp32 adds up in another order each time.
    tolerance = 3e-3 if precision == "bf16" else 1e-4 if device.type == "cuda" else 1e-5
    for name, parallel in OTHERS.items():
        found = losses(precision, device, {**PLAIN, "parallel": parallel})
        assert found == pytest.approx(native, abs=tolerance), name


@pytest.mark.cuda
def test_engines_train_alike_compiled() -> None:
    device = torch.device("cuda")
    native = losses("bf16", device, PLAIN)
    for name, parallel in {"native": {}, **OTHERS}.items():
        found = losses("bf16", device, {"parallel": parallel})
        assert found == pytest.approx(native, abs=5e-3), name


@pytest.mark.cuda
@pytest.mark.parametrize("compiled", [False, True])
def test_a_native_step_waits_for_nothing_whatever_it_is_made_of(compiled: bool) -> None:
    """Scalars included (tests/engine/test_device.py); here at the forms that the plan chooses on a GPU."""
    device = torch.device("cuda")
    for changes in ({}, {"data": {"document_masks": True}}, {"model": {"hidden_dropout": 0.1}}):
        torch.compiler.reset()  # else the last of them runs uncompiled: it keeps eight versions of a function
        work = make_workload("14m", device, {**changes, "kernels": {"compile": compiled}})
        step, batches = build("llmkit", work, "bf16", device, print), make_batches(work, device)
        for batch in batches[:3]:
            step(batch)
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                step(batches[3])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [str(each.message) for each in caught if "synchroniz" in str(each.message)]
        assert waits == [], changes
