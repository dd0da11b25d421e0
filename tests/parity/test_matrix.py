"""Every layout trains like one process: losses, gradients, weights, moments."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from llmkit.parity.cases import LARGE
from llmkit.parity.covering import covering
from tests.ranks import run_ranks

CASES = covering() + LARGE


@cache
def verdicts(world_size: int) -> dict[str, dict[str, Any]]:
    """Of all cases for this many processes: a launch costs more than a case."""
    cases = [case for case in CASES if case.world_size == world_size]
    settings = [case.to_dict() for case in cases]
    found = run_ranks(world_size, "tests.parity.launched:judge", cases=settings)[0]
    return dict(zip(map(str, cases), found, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_case_equals_one_process(case):
    verdict = verdicts(case.world_size)[str(case)]
    print(verdict["row"])
    assert verdict["failures"] == []
