"""Layouts train alike in fp8, in which each rank scales by what it holds itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from llmkit.parity.cases import Case
from tests.ranks import run_ranks

DATA = [Case("even", stage, 1, 2, False, 1, "none", False, "fp8", "none") for stage in range(4)]
TENSOR = [
    Case("even", 0, 2, 1, pieces, 1, recomputed, False, "fp8", "none")
    for pieces, recomputed in ((False, "none"), (True, "selective"))
]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    cases = [*DATA, *TENSOR]
    results = run_ranks(2, "tests.parity.fp8_cases:run", cases=[asdict(case) for case in cases])[0]
    return dict(zip(map(str, cases), results, strict=True))


@pytest.mark.parametrize("case", [*DATA, *TENSOR], ids=str)
def test_a_layout_differs_from_one_process_as_rounding_does(found, case):
    assert found[str(case)]["failures"] == []


@pytest.mark.parametrize("case", DATA[1:], ids=str)
def test_zero_rounds_as_data_parallelism_does(found, case):
    """The same rows on the same ranks: what differs is the order of sums of gradients."""
    assert found[str(case)]["losses"] == pytest.approx(found[str(DATA[0])]["losses"], rel=1e-5)
