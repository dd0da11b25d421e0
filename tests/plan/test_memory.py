"""The one estimate of a step's memory: its parts, what it is at least, and how it changes with a layout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, Kernels, Plan, plan_for_shape
from llmkit.plan.form_rules import Choice
from llmkit.plan.memory import CERTAIN, memory
from tests.shapes import LLAMA_STYLE

SHAPE = replace(LLAMA_STYLE, hidden_size=256, max_position_embeddings=1024, num_hidden_layers=4)


def planned(**parallel: Any) -> Plan:
    train = {"max_steps": 1, "precision": "bf16", "global_batch_size": 16, "micro_batch_size": 4}
    data = {"sources": [{"type": "stdlib"}], "sequence_length": 1024}
    kernels = {"operators": {"attention": "sdpa"}}
    settings = {"data": data, "train": train, "parallel": parallel, "kernels": kernels}
    return plan_for_shape(SHAPE, settings, DeviceFacts())


def test_it_is_the_sum_of_its_parts_and_grows_with_the_micro_batch() -> None:
    plan = planned()
    found = memory(plan)
    assert found.activations is not None
    assert found.on_device == plan.state.device + sum(found.activations.values())
    assert memory(plan, 2).activation_bytes == pytest.approx(found.activation_bytes / 2, rel=0.01)
    assert memory(plan, layout=Layout(activation_checkpointing="full")).on_device < found.on_device
    assert str(found).startswith("weights ") and " + activations " in str(found)


def test_at_least_it_is_the_state_and_nine_tenths_of_what_blocks_keep() -> None:
    found = memory(planned())
    assert found.activations is not None
    kept = found.activations["residual stream and norms"] + found.activations["attention"]
    kept += found.activations["mlp"]
    state = found.state
    assert CERTAIN * kept > state.gradients, "gradients come as activations go"
    assert found.least == state.total - state.gradients + int(CERTAIN * kept) < found.on_device
    blocks = Kernels(True, {"attention": Choice("attention", "blocks", "")})
    scored = memory(replace(planned(), kernels=blocks))
    assert scored.least == found.least < scored.on_device - found.on_device, "the compiler may know better"
    several = memory(planned(world_size=2))
    assert several.least == state.total + int(CERTAIN * kept), "buckets are there all the time"


def test_buffers_are_those_of_deepspeed() -> None:
    assert memory(planned(world_size=2)).buffers == memory(planned(world_size=2, zero_stage=1)).buffers == {}
    found = memory(planned(world_size=2, zero_stage=3))
    assert set(found.buffers) == {"gathered weights", "gradient bucket"}
    assert found.on_device == found.state.device + found.activation_bytes + sum(found.buffers.values())


def test_our_own_stage_2_has_few_gradients_at_once_beside_a_ranks_slices() -> None:
    first, second = (
        memory(planned(world_size=4, zero_stage=stage, engine="native")) for stage in (1, 2)
    )
    assert second.state.gradients == first.state.gradients // 4
    assert second.state.masters == first.state.masters and second.state.weights == first.state.weights
    assert set(second.buffers) == {"buckets of gradients"}
    assert 0 < second.buffers["buckets of gradients"] <= first.state.gradients


def test_documents_that_fused_attention_masks_take_a_mask() -> None:
    plan = planned()
    data = plan.config.data.model_copy(update={"document_masks": True})
    masked = memory(replace(plan, config=plan.config.model_copy(update={"data": data}))).activations
    assert masked is not None and masked["masks"] > 0 and "masks" not in (memory(plan).activations or {})
