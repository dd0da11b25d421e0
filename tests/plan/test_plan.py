"""What a plan holds, and what of it is written down and compared."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmkit.plan import DeviceFacts, Plan, plan_for_shape
from llmkit.plan.state_memory import state_memory
from llmkit.precision import PRECISIONS
from tests.shapes import LLAMA_STYLE


def planned(**sections: dict[str, object]) -> Plan:
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 24},
        **sections,
        "train": {"max_steps": 3, "global_batch_size": 10, "precision": "bf16"} | sections.get("train", {}),
    }
    return plan_for_shape(LLAMA_STYLE, settings, DeviceFacts())


@pytest.mark.parametrize(("processes", "rows", "padding"), [(1, 10, 0), (2, 5, 0), (3, 4, 2), (4, 3, 2)])
def test_the_ranks_share_the_batch_with_padding(processes: int, rows: int, padding: int) -> None:
    plan = planned(parallel={"world_size": processes})
    assert (plan.rows_per_rank, plan.padding_rows) == (rows, padding)
    assert plan.micro_batch_size * plan.accumulation_steps == rows
    assert plan.tokens_per_step == 10 * 24


def test_its_state_is_that_of_its_layout() -> None:
    plan = planned(parallel={"world_size": 4, "zero_stage": 2, "tensor_parallel_size": 2})
    assert plan.state == state_memory(plan.config, LLAMA_STYLE, PRECISIONS["bf16"], plan.layout)
    assert plan.state.moments == 2 * plan.state.masters == 2 * plan.state.gradients


def test_it_can_be_written_down() -> None:
    plan = planned()
    written = json.loads(json.dumps(plan.to_json()))
    assert written == plan.to_json()
    assert written["precision"] == "bf16"
    assert written["number_types"] == {
        "weights": "bf16", "compute": "bf16", "linear": "bf16", "reduction": "fp32", "masters": "fp32"
    }  # fmt: skip
    assert written["model"] == LLAMA_STYLE.to_dict()
    assert {"micro_batch_size", "accumulation_steps", "layout", "kernels", "max_steps"} <= written.keys()


def test_ranks_see_every_difference_of_their_plans() -> None:
    plan = planned()
    for other in (
        replace(plan, micro_batch_size=1, accumulation_steps=10),
        replace(plan, precision=PRECISIONS["fp32"]),
        replace(plan, layout=replace(plan.layout, zero_stage=1)),
        replace(plan, kernels=replace(plan.kernels, compiled=not plan.kernels.compiled)),
    ):
        assert other.facts() != plan.facts()


def test_a_plan_with_something_pending_is_not_complete() -> None:
    plan = planned()
    plan.require_complete()
    with pytest.raises(ValueError, match=r"not complete.*chosen at start"):
        replace(plan, pending={"precision": "chosen at start"}).require_complete()
