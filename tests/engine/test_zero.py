"""DDP, ZeRO and tensor parallelism on several processes against the native engine on one."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from tests.chosen import few_at_every_commit
from tests.engine import rank_cases
from tests.ranks import run_ranks

CASES = "tests.engine.rank_cases"
STAGES = list(rank_cases.ENGINES)
NATIVE = [stage for stage in STAGES if stage.startswith("native")]
DEEPSPEED = [stage for stage in STAGES if stage not in NATIVE]


class Setting(NamedTuple):
    """One launch."""

    ranks: int
    stages: list[str]
    arguments: dict[str, Any]


SETTINGS = {
    "gpt2": Setting(2, STAGES, {"style": "gpt2", "precision": "fp32", "accumulation": 2, "tensor_size": 1}),
    "bf16": Setting(2, STAGES, {"style": "llama", "precision": "bf16", "accumulation": 2, "tensor_size": 1}),
    "offload": Setting(
        2,
        DEEPSPEED,
        {"style": "llama", "precision": "fp32", "accumulation": 1, "tensor_size": 1, "offload": "cpu"},
    ),
    "muon": Setting(
        2,
        STAGES,
        {
            "style": "llama",
            "precision": "fp32",
            "accumulation": 2,
            "tensor_size": 1,
            "optimizer": "muon",
        },
    ),
    "muon-bf16": Setting(
        2,
        STAGES,
        {
            "style": "llama",
            "precision": "bf16",
            "accumulation": 1,
            "tensor_size": 1,
            "optimizer": "muon",
            "offload": "cpu",
        },
    ),
    "four": Setting(
        4,
        NATIVE,
        {"style": "gpt2", "precision": "fp32", "accumulation": 1, "tensor_size": 1, "optimizer": "muon"},
    ),
    "muon-tensor": Setting(
        4,
        STAGES,
        {
            "style": "llama",
            "precision": "fp32",
            "accumulation": 1,
            "tensor_size": 2,
            "context_size": 2,
            "optimizer": "muon",
        },
    ),
    "tensor": Setting(
        4,
        STAGES,
        {
            "style": "llama",
            "precision": "fp32",
            "accumulation": 2,
            "tensor_size": 2,
            "sequence_parallel": True,
        },
    ),
}


AS_IN_PARITY = ("gpt2", "offload", "muon", "muon-bf16", "tensor")
"""What tests/parity/test_matrix.py compares at every commit, too."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.exhaustive if name in AS_IN_PARITY else []) for name in SETTINGS
    ],
)
def compared(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """(precision, figures of all stages): one launch for each setting."""
    ranks, stages, arguments = SETTINGS[request.param]
    results = run_ranks(ranks, f"{CASES}:compare", stages=stages, **arguments)
    figures = results[0]
    for stage in stages:
        for key in ("rows", "evaluation", "updates"):
            assert all(result[stage][key] == figures[stage][key] for result in results), "the ranks disagree"
        figures[stage]["worst"] = [result[stage]["worst"] for result in results]
        figures[stage]["elements"] = sum(result[stage]["elements"] for result in results)
    return arguments["precision"], figures


def stages_of(figures: dict[str, Any]) -> dict[str, Any]:
    return {stage: figures[stage] for stage in STAGES if stage in figures}


def test_loss_and_gradient_norm_of_every_step(compared):
    precision, figures = compared
    loss, norm = (1e-6, 2e-5) if precision == "fp32" else (2e-3, 1e-2)
    for stage, found in stages_of(figures).items():
        for row, wanted in zip(found["rows"], figures["reference"], strict=True):
            assert row[0] == pytest.approx(wanted[0], rel=loss), stage
            assert row[1] == pytest.approx(wanted[1], rel=norm), stage
            assert row[2] == 0.0


def test_state_that_is_written_after_an_evaluation_is_what_the_next_step_uses(compared):
    for stage, found in stages_of(compared[1]).items():
        assert found["again"] == pytest.approx(found["rows"][0], rel=1e-6), stage


def test_clipping_was_active(compared):
    assert min(norm for _, norm, _ in compared[1]["reference"]) > 0.5


def test_masters_and_moments_after_some_steps(compared):
    precision, figures = compared
    for stage, found in stages_of(figures).items():
        for worst in found["worst"]:
            for kind, (error, name) in worst.items():
                # In bf16 rounding alone moves gradients by per cents.
                limit = 5e-2 if precision == "bf16" else 1e-5 if kind == "master" else 1e-4
                assert error < limit, (stage, kind, name)


def test_the_ranks_pieces_are_the_whole_once(compared):
    for found in stages_of(compared[1]).values():
        assert found["elements"] == compared[1]["elements"]


def test_evaluation_and_count_of_updates(compared):
    precision, figures = compared
    for found in stages_of(figures).values():
        tolerance = 1e-6 if precision == "fp32" else 2e-3
        assert found["evaluation"] == pytest.approx(figures["evaluation"], rel=tolerance)
        assert found["updates"] == 5


@pytest.mark.parametrize("precision", few_at_every_commit(["fp32", "bf16"], ["bf16"]))
def test_zero_on_a_process_alone_trains_like_the_native_engine(precision):
    (found,) = run_ranks(1, f"{CASES}:alone", joined=False, precision=precision)
    for stage in STAGES[1:]:
        for row, wanted in zip(found[stage], found["native 0"], strict=True):
            assert row[0] == pytest.approx(wanted[0], rel=1e-5 if precision == "fp32" else 2e-3), stage
            assert row[1] == pytest.approx(wanted[1], rel=1e-4 if precision == "fp32" else 1e-2), stage


@pytest.mark.parametrize(
    ("precision", "offload"),
    [("fp32", "none"), pytest.param("bf16", "none", marks=pytest.mark.exhaustive), ("bf16", "cpu")],
)
def test_a_step_without_targets_or_with_a_nan_on_one_rank_changes_nothing_on_any(precision, offload):
    stages = STAGES if offload == "none" else DEEPSPEED
    results = run_ranks(2, f"{CASES}:void_steps", precision=precision, stages=stages, offload=offload)
    wanted = rank_cases.without_refused_step(precision)
    for figures in results:
        for stage, found in figures.items():
            assert found["untouched"] and found["skipped"] and found["same"], stage
            assert found["updates"] == 5
            for row, expected in zip(found["rows"], wanted, strict=True):
                assert row[0] == pytest.approx(expected[0], rel=1e-6 if precision == "fp32" else 2e-3), stage


def test_a_nan_in_the_tokens_of_one_rank_changes_nothing_on_those_that_it_deals_experts_out_with():
    arguments = {"precision": "fp32", "stages": NATIVE, "style": "experts", "expert_size": 2}
    results = run_ranks(2, f"{CASES}:void_steps", **arguments)
    wanted = rank_cases.without_refused_step("fp32", "experts")
    for figures in results:
        for stage, found in figures.items():
            assert found["untouched"] and found["skipped"] and found["same"], stage
            assert found["updates"] == 5
            for row, expected in zip(found["rows"], wanted, strict=True):
                assert row[0] == pytest.approx(expected[0], rel=1e-6), stage
