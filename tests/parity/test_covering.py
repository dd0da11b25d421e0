"""Few cases, but every pair of settings that can meet does."""

from __future__ import annotations

from itertools import combinations

import pytest

from llmkit.parity.cases import FACTORS, LARGE, all_cases
from llmkit.parity.covering import covering
from llmkit.parity.subjects import LENGTH, MODELS
from llmkit.plan import DeviceFacts, plan_for_shape


@pytest.mark.parametrize("strength", [2, 3])
def test_every_combination_that_can_be_is_tried(strength):
    chosen, names = covering(strength), set(FACTORS)
    for group in combinations(FACTORS, strength):
        possible = {tuple(getattr(case, name) for name in group) for case in all_cases()}
        tried = {tuple(getattr(case, name) for name in group) for case in chosen}
        exactly = {
            tuple(getattr(case, name) for name in group) for case in chosen if case.precision == "fp32"
        }
        assert tried == possible, group
        assert "precision" in group or exactly == possible, f"{group} only in bf16"
    assert names == set(chosen[0].to_dict())


def test_every_layout_is_tried_in_fp32():
    layouts = {(case.stage, case.tensor, case.sequence_parallel) for case in all_cases()}
    assert len(layouts) == 20
    chosen = [case for case in covering() if case.precision == "fp32"]
    assert {(case.stage, case.tensor, case.sequence_parallel) for case in chosen} == layouts


def test_the_choice_is_small_and_always_the_same():
    chosen = covering()
    assert chosen == covering() and len(set(chosen)) == len(chosen)
    assert len(chosen) <= 30 and sum(case.world_size == 8 for case in chosen) <= 7
    assert len(covering(3)) <= 110


def test_only_layouts_that_exist_are_cases():
    for case in [*all_cases(), *LARGE]:
        assert case.world_size <= 8
        assert case.data == 2 or case.stage == 0
        assert case.tensor > 1 or not case.sequence_parallel
        assert case.stage > 0 or case.offload == "none"


def test_a_case_tells_its_layout():
    case = next(
        case for case in all_cases() if str(case) == "odd Z3 tp2 dp2 sp acc3 full/2 masked fp32 offload"
    )
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": LENGTH},
        "train": {"max_steps": 1},
    }
    plan = plan_for_shape(MODELS[case.model], {**settings, "parallel": case.parallel}, DeviceFacts())
    layout = plan.layout
    assert (layout.world_size, layout.data_parallel_size, layout.tensor_parallel_size) == (4, 2, 2)
    assert (layout.zero_stage, layout.offload, layout.sequence_parallel) == (3, "cpu", True)
    assert (layout.activation_checkpointing, layout.activation_checkpointing_every) == ("full", 2)
    assert len({str(each) for each in all_cases()}) == len(list(all_cases()))
