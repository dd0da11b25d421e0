"""The comparison can fail: well-known mistakes are made on purpose, and each is caught."""

from __future__ import annotations

import pytest

from tests.parity.mistakes import CASES
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
