"""Few cases, but every pair of settings that can meet does."""

from __future__ import annotations

from dataclasses import asdict
from itertools import combinations

import pytest

from llmkit.parity.cases import FACTORS, all_cases
from llmkit.parity.covering import covering


@pytest.mark.parametrize("strength", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_every_combination_that_can_be_is_tried(strength):
    chosen, names, every = covering(strength), set(FACTORS), list(all_cases())
    for group in combinations(FACTORS, strength):
        possible = {tuple(getattr(case, name) for name in group) for case in every}
        tried = {tuple(getattr(case, name) for name in group) for case in chosen}
        exactly = {
            tuple(getattr(case, name) for name in group) for case in chosen if case.precision == "fp32"
        }
        assert tried == possible, group
        assert "precision" in group or exactly == possible, f"{group} only in bf16"
    have_cases_of_their_own = {
        "forms", "compiled", "adapters", "context", "context_form", "length", "expert", "mlp_tile",
    }  # fmt: skip
    assert names == set(asdict(chosen[0])) - have_cases_of_their_own
    assert strength == 2 or len(chosen) <= 110


def test_every_layout_is_tried_in_fp32():
    layouts = {(case.stage, case.engine, case.tensor, case.sequence_parallel) for case in all_cases()}
    assert len(layouts) == 25
    chosen = [case for case in covering() if case.precision == "fp32"]
    assert {(case.stage, case.engine, case.tensor, case.sequence_parallel) for case in chosen} == layouts


def test_the_choice_is_small_and_always_the_same():
    chosen = covering()
    assert chosen == covering() and len(set(chosen)) == len(chosen)
    assert len(chosen) <= 33 and sum(case.world_size == 8 for case in chosen) <= 9
