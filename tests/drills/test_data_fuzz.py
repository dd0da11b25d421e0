"""Random mixtures give the same rows however often, and on however many ranks, a run is started."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.drills.data_fuzz import difference, make

CASES = 24


@pytest.mark.drill(
    "D49",
    injection="random mixtures of token shards and live sources, with skipped records, limits of epochs and "
    "weights that change, stopped and resumed on 1 to 8 ranks",
    expected="the rows of one process that nothing stops, in their order",
)
def test_random_mixtures_resume_exactly(measured: Callable[[str, float | str, str], None]) -> None:
    for number in range(CASES):
        case = make(number)
        assert not (found := difference(case)), f"case {number}: {found}; {case}"
    measured("mixtures", CASES, "")
