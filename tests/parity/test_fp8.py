"""Layouts train alike in fp8, in which each rank scales by what it holds itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from llmkit.parity.cases import Case
from tests.chosen import chosen, few_at_every_commit
from tests.ranks import run_ranks

DATA = [Case("even", stage, 1, 2, False, 1, "none", False, "fp8", "none") for stage in range(4)]
TENSOR = [
    Case("even", 0, 2, 1, pieces, 1, recomputed, False, "fp8", "none")
    for pieces, recomputed in ((False, "none"), (True, "selective"))
]
ALWAYS = (DATA[0], DATA[3], *TENSOR)
"""Each engine, and tensor parallelism."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What came of the chosen cases and of the one that all are compared with; in one launch."""
    cases = list(dict.fromkeys([DATA[0], *chosen(request, "case")]))
    results = run_ranks(2, "tests.parity.fp8_cases:run", cases=[asdict(case) for case in cases])[0]
    return dict(zip(map(str, cases), results, strict=True))


@pytest.mark.parametrize("case", few_at_every_commit([*DATA, *TENSOR], ALWAYS))
def test_a_layout_differs_from_one_process_as_rounding_does(found, case):
    assert found[str(case)]["failures"] == []


@pytest.mark.parametrize("case", few_at_every_commit(DATA[1:], ALWAYS))
def test_zero_rounds_as_data_parallelism_does(found, case):
    """The same rows on the same ranks: what differs is the order of sums of gradients."""
    assert found[str(case)]["losses"] == pytest.approx(found[str(DATA[0])]["losses"], rel=1e-5)
