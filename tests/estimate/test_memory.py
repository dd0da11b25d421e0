"""Memory of a plan by part, against what the settings say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmkit.config.load import load
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.memory import memory_of
from llmkit.plan import DeviceFacts, Known, Plan, resolve_plan
from tests.program import make_project

GIB = 2**30
SIZES = (
    "model.hidden_size=768", "model.intermediate_size=3072", "model.num_hidden_layers=12",
    "model.num_attention_heads=12", "model.num_key_value_heads=12", "data.sequence_length=1024",
    "train.global_batch_size=64", "train.micro_batch_size=16", "train.precision=bf16",
)  # fmt: skip


def fleet(gib: float) -> Fleet:
    """One H100 with so much memory."""
    of = Hardware().fleet("h100", 1, 1)
    return replace(of, device=replace(of.device, memory=gib * GIB))


@pytest.fixture
def plan(tmp_path: Any) -> Any:
    def make(world: int = 1, *overrides: str) -> Plan:
        loaded = load(make_project(tmp_path), [*SIZES, *overrides])
        return resolve_plan(loaded, Known(world, None, 257, True, DeviceFacts()))

    return make


def test_the_largest_micro_batch_fits_and_the_next_one_does_not(plan: Any) -> None:
    one = plan()
    needs = {
        micro: memory_of(plan(1, f"train.micro_batch_size={micro}"), fleet(1000)).device_bytes
        for micro in (8, 16)
    }
    assert needs[8] < needs[16]
    found = memory_of(one, fleet((needs[8] + needs[16]) / 2 / 0.95 / GIB))
    assert found.largest_micro_batch == 8
    assert memory_of(one, fleet(0.01)).largest_micro_batch == 0
