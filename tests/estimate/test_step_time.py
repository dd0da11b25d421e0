"""The estimate of a plan's step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmkit.config.model_section import Moe
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.facts import facts_of
from llmkit.estimate.step_time import SURE, UNSURE, StepEstimate, step_time
from llmkit.plan import Plan, plan_for_shape

LLAMA_8B = ModelShape(
    128256, 128256, 4096, 32, 32, 8, 128, 14336, 8192, tie_word_embeddings=False, rope_theta=500000.0
)
SECTIONS: dict[str, Any] = {
    "data": {"sources": [{"type": "stdlib"}], "sequence_length": 8192, "tokenizer": {"type": "bytes"}},
}


def plan_of(
    shape: ModelShape, train: dict[str, Any], parallel: dict[str, Any], device: str = "h100", **more: Any
) -> Plan:
    """The plan of a run on this device; more: further sections."""
    sections = {**SECTIONS, "train": {"max_steps": 10, **train}, "parallel": parallel, **more}
    return plan_for_shape(shape, sections, facts_of(Hardware().device(device)))


def estimate(
    train: dict[str, Any], parallel: dict[str, Any], nodes: int = 1, device: str = "h100"
) -> StepEstimate:
    plan = plan_of(LLAMA_8B, train, parallel, device)
    return step_time(plan, Hardware().fleet(device, nodes=nodes))


def test_llama_8b_on_a_node_is_near_what_is_published() -> None:
    """accelerate's FSDP2 reports 8.0 thousand tokens a second and GPU for this shape and length."""
    step = estimate(
        {"global_batch_size": 8, "micro_batch_size": 1},
        {"world_size": 8, "engine": "deepspeed", "zero_stage": 3},
    )
    assert step.tokens_per_second / step.devices == pytest.approx(8000, rel=0.15)
    assert step.seconds == pytest.approx(sum(part.value for part in step.parts))
    assert (step.low, step.high) == pytest.approx(((1 - SURE) * step.seconds, (1 + SURE) * step.seconds))
    assert step.mfu is not None
    assert step.mfu_causal is not None
    assert 0.4 < step.mfu_causal < step.mfu < 0.6
    assert step.hfu == step.mfu
    assert all(part.formula and part.source for part in (*step.parts, *step.hidden))


def test_recomputation_counts_in_hfu_and_in_time() -> None:
    parallel = {"world_size": 8, "engine": "deepspeed", "zero_stage": 3}
    train = {"global_batch_size": 8, "micro_batch_size": 1}
    plain, full = estimate(train, parallel), estimate(train, {**parallel, "activation_checkpointing": "full"})
    assert plain.seconds * 1.15 < full.seconds < plain.seconds * 1.6
    assert full.mfu is not None
    assert full.hfu is not None
    assert full.hfu > 1.2 * full.mfu


@pytest.mark.parametrize(
    ("parallel", "nodes", "device", "why"),
    [
        ({"world_size": 8, "tensor_parallel_size": 8}, 1, "h100", "tensor parallelism over 8 ranks"),
        ({"world_size": 8, "context_parallel_size": 2}, 1, "h100", "shared rows were never measured"),
        ({"world_size": 2048}, 256, "h100", "2,048 ranks"),
        ({"world_size": 8}, 1, "b200", "no published run was compared on b200"),
    ],
)
def test_what_is_not_known_widens_the_estimate(
    parallel: dict[str, Any], nodes: int, device: str, why: str
) -> None:
    step = estimate({"global_batch_size": 2048, "micro_batch_size": 1}, parallel, nodes, device)
    assert (step.spread, step.unsure) == (UNSURE, (why,))


def test_a_mixture_of_experts_widens_the_estimate() -> None:
    shape = replace(LLAMA_8B, moe=Moe(num_experts=8, num_experts_per_tok=2))
    plan = plan_of(shape, {"global_batch_size": 8, "micro_batch_size": 1}, {"world_size": 8})
    step = step_time(plan, Hardware().fleet("h100"))
    assert (step.spread, step.unsure) == (UNSURE, ("no mixture of experts was compared",))


def test_a_registered_model_has_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(LLAMA_8B, {"global_batch_size": 8}, {"world_size": 8})
    monkeypatch.setattr("llmkit.estimate.step_time.workload_of", lambda plan: None)
    with pytest.raises(UserError, match="no estimate of time for the model type"):
        step_time(plan, Hardware().fleet("h100"))
