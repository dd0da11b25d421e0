"""Parameters that require no gradient, under every engine and stage, against the native engine alone."""

from __future__ import annotations

import pytest

from tests.chosen import chosen, few_at_every_commit
from tests.examples.project import forgotten
from tests.ranks import run_ranks

LAYOUTS = {
    "native 0": {"zero_stage": 0},
    "native 1": {"zero_stage": 1},
    "deepspeed 1": {"zero_stage": 1, "engine": "deepspeed"},
    "deepspeed 2": {"zero_stage": 2},
    "deepspeed 3": {"zero_stage": 3},
    "deepspeed 2, offload": {"zero_stage": 2, "offload": "cpu"},
    "deepspeed 3, offload": {"zero_stage": 3, "offload": "cpu"},
}
CASES = {
    f"{precision} {optimizer} {name}": {"precision": precision, "optimizer": optimizer, "parallel": layout}
    for precision, optimizer in (("fp32", "muon"), ("bf16", "adamw"))
    for name, layout in LAYOUTS.items()
}

FEW = (
    "fp32 muon native 1", "fp32 muon deepspeed 3", "bf16 adamw native 0", "bf16 adamw deepspeed 2, offload",
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks(request: pytest.FixtureRequest) -> list[dict[str, dict]]:
    names = chosen(request, "case")
    cases = [CASES[name] for name in names]
    found = run_ranks(4, "tests.engine.frozen_cases:compare", cases=cases, tensor_size=2)
    return [dict(zip(names, each, strict=True)) for each in found]


@pytest.mark.parametrize("case", few_at_every_commit(CASES, FEW))
def test_frozen_parameters_stay_and_the_others_train_as_on_one_process(ranks, case):
    loss, extra, tensor = (1e-6, 1e-6, 3e-5) if case.startswith("fp32") else (2e-3, 2e-2, 5e-2)
    for found in (each[case] for each in ranks):
        alone, spread = found["losses"]
        assert spread[::3] == pytest.approx(alone[::3], rel=loss)
        assert spread == pytest.approx(alone, rel=extra)
        assert alone[-1] != alone[0]
        assert found["worst"][0] < tensor, found["worst"]
        assert found["changed"] == []


@pytest.mark.parametrize("case", few_at_every_commit(CASES, FEW))
def test_frozen_parameters_have_no_masters_moments_or_gradients(ranks, case):
    for found in (each[case] for each in ranks):
        assert found["moments"] == found["masters"] == found["gradients"] == []
        assert found["kinds"][0] == found["kinds"][1] and len(found["kinds"][0]) > 2


def test_a_model_of_which_all_is_frozen_is_refused():
    with forgotten("tests.engine.frozen_cases", "tests.engine.custom_models"):
        from tests.engine import frozen_cases

        assert "AllFrozen has no parameter that requires a gradient" in frozen_cases.nothing_to_train()
