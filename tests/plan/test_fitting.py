"""What is proposed where a step does not fit: changes that are needed, and that are enough by estimate."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from llmkit.config.load import load
from llmkit.plan import DeviceFacts, Known, Plan, fitting, resolve_plan
from llmkit.plan.fitting import SAFE_SHARE, alternatives
from llmkit.plan.memory import memory
from llmkit.plan.overview import activation_bytes
from tests.program import make_project

GIB = 2**30
SIZES = (
    "model.hidden_size=768", "model.intermediate_size=3072", "model.num_hidden_layers=12",
    "model.num_attention_heads=12", "model.num_key_value_heads=12", "data.sequence_length=1024",
    "train.global_batch_size=64", "train.micro_batch_size=16", "train.precision=bf16",
)  # fmt: skip


@pytest.fixture
def plan(tmp_path: Any) -> Any:
    def make(world: int = 1, *overrides: str) -> Plan:
        loaded = load(make_project(tmp_path), [*SIZES, *overrides])
        return resolve_plan(loaded, Known(world, None, 257, True, DeviceFacts()))

    return make


def test_the_estimate_is_that_of_the_overview(plan: Any) -> None:
    one = plan()
    found = memory(one)
    assert found.activation_bytes == activation_bytes(one)
    assert found.state == one.state
    assert found.on_device == one.state.total + found.activation_bytes
    parts = re.findall(r"(\w+(?: \w+)?) ([\d.]+) (MiB|GiB)", str(found))
    assert [name for name, _, _ in parts] == ["weights", "gradients", "masters", "moments", "activations"]
    total = sum(float(size) * (GIB if unit == "GiB" else 2**20) for _, size, unit in parts)
    assert total == pytest.approx(found.on_device, rel=0.01)


def test_each_alternative_fits_and_no_milder_one_would(plan: Any) -> None:
    one = plan()
    room = memory(one).on_device * 2 // 3
    found = alternatives(one, room, on_gpu=True)
    assert found and all(size <= SAFE_SHARE * room for _, size in found)
    assert {change.partition("=")[0] for changes, _ in found for change in changes} <= {
        "train.micro_batch_size", "parallel.activation_checkpointing",
    }  # fmt: skip
    micro = next(int(changes[0].partition("=")[2]) for changes, _ in found if "micro" in changes[0])
    assert memory(one, 2 * micro, one.layout).on_device > SAFE_SHARE * room, "a larger one would not fit"
    levels = [changes[0] for changes, _ in found if "activation" in changes[0]]
    selective = replace(one.layout, activation_checkpointing="selective")
    fits = memory(one, 16, selective).on_device <= SAFE_SHARE * room
    assert levels == [f"parallel.activation_checkpointing={'selective' if fits else 'full'}"]


def test_state_that_does_not_fit_is_shared_or_kept_on_the_host(plan: Any) -> None:
    """12 layers of 768: the state is 16 bytes a parameter, of which stage 3 leaves a quarter on each."""
    one = plan(4, "train.micro_batch_size=1")
    room = memory(one, 1, one.layout).on_device * 2 // 3
    found = [changes for changes, _ in alternatives(one, room, on_gpu=True)]
    assert any("parallel.zero_stage=" in change for changes in found for change in changes)
    assert all("train.micro_batch_size" not in change for changes in found for change in changes)
    native = plan(4, "train.micro_batch_size=1", "parallel.engine=native")
    found = [each for changes, _ in alternatives(native, room, on_gpu=True) for each in changes]
    stages = {each for each in found if "zero_stage" in each}
    assert stages <= {"parallel.zero_stage=1", "parallel.zero_stage=2"}, "the native engine knows no other"
    assert {layout.engine for _, layout in fitting._candidates(native, on_gpu=True)} == {"native"}


def test_nothing_is_promised_where_nothing_fits_and_estimates_that_were_too_low_are_not_believed(
    plan: Any,
) -> None:
    one = plan()
    assert alternatives(one, GIB // 100, on_gpu=True) == []
    plenty = alternatives(one, 1000 * GIB, on_gpu=True)  # it has failed all the same
    assert plenty and all(size <= SAFE_SHARE * memory(one).on_device for _, size in plenty)
