"""The comparison can fail: well-known mistakes are made on purpose, and each is caught."""

from __future__ import annotations

import pytest

from tests.parity.mistakes import CASES, CASES_OF_DEALT_OUT, CASES_OF_EXPERTS, CONTEXT_CASES
from tests.ranks import run_ranks

CAUGHT_BY = {
    "placements_missing": "initial norm",
    "gradient_not_summed": "initial gradient (blocks.",
    "bias_of_every_rank": "initial loss",
    "vocabulary_from_zero": "initial loss",
    "heads_not_gathered": "initial gradient (blocks.",
    "mean_of_means": "initial gradient",
    "mask_dropped": "initial loss",
    "rows_seen_twice": "initial loss",
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, list[str]]]:
    return run_ranks(4, "tests.parity.mistakes:failures")[0]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mistake", CAUGHT_BY)
def test_a_mistake_is_caught(found, case, mistake):
    lines = found[mistake][str(case)]
    assert any(line.startswith(CAUGHT_BY[mistake]) for line in lines), lines


@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranks_that_drift_apart_are_noticed(found, case):
    assert any(line.startswith("replicas (") for line in found["gradient_not_summed"][str(case)])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_one_nothing_is(found, case):
    assert found[""][str(case)] == []
    assert set(found) == {"", *CAUGHT_BY}


CONTEXT_CAUGHT_BY = {
    "positions_restarted": "initial loss",
    "edge_label_dropped": "initial loss",
    "context_sum_missing": "initial gradient",
    "documents_of_pieces": "initial loss",
}


@pytest.fixture(scope="module")
def found_of_shared_rows() -> dict[str, dict[str, list[str]]]:
    return run_ranks(2, "tests.parity.mistakes:context_failures")[0]


@pytest.mark.parametrize("case", CONTEXT_CASES, ids=str)
def test_a_mistake_with_pieces_of_rows_is_caught(found_of_shared_rows, case):
    for mistake, caught_by in CONTEXT_CAUGHT_BY.items():
        lines = found_of_shared_rows[mistake][str(case)]
        assert any(line.startswith(caught_by) for line in lines), (mistake, lines)
    assert found_of_shared_rows[""][str(case)] == []
    assert set(found_of_shared_rows) == {"", *CONTEXT_CAUGHT_BY}


OF_EXPERTS_CAUGHT_BY = {
    "choices_not_summed": "initial gradient (blocks.",
    "balance_of_a_piece": "initial gradient (blocks.",
    "returned_out_of_order": "initial loss",
}


@pytest.fixture(scope="module")
def found_of_experts() -> dict[str, dict[str, list[str]]]:
    return run_ranks(2, "tests.parity.mistakes:failures_with_experts")[0]


@pytest.mark.parametrize("case", CASES_OF_EXPERTS, ids=str)
def test_a_mistake_with_experts_is_caught(found_of_experts, case):
    for mistake, caught_by in OF_EXPERTS_CAUGHT_BY.items():
        lines = found_of_experts[mistake][str(case)]
        assert any(line.startswith(caught_by) for line in lines), (mistake, lines)
    assert found_of_experts[""][str(case)] == []


DEALT_OUT_CAUGHT_BY = {
    "divided_once_more": "initial gradient (blocks.",
    "own_experts_counted": "initial norm",
    "sent_back_out_of_order": "initial loss",
    "last_slice_alone": "initial gradient",
}


@pytest.mark.parametrize("case", CASES_OF_DEALT_OUT, ids=str)
def test_a_mistake_with_experts_that_are_dealt_out_is_caught(found_of_experts, case):
    for mistake, caught_by in DEALT_OUT_CAUGHT_BY.items():
        lines = found_of_experts[mistake][str(case)]
        assert any(line.startswith(caught_by) for line in lines), (mistake, lines)
    assert found_of_experts[""][str(case)] == []
    assert set(found_of_experts) == {"", *OF_EXPERTS_CAUGHT_BY, *DEALT_OUT_CAUGHT_BY}
