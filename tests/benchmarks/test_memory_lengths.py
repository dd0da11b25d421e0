"""The peak of a step grows with the length of rows as a plan says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.memory_lengths import SHAPE, Case, peak, planned, slope

LENGTHS = (256, 512)
SMALL = replace(SHAPE, max_position_embeddings=512, num_hidden_layers=6)


def bytes_a_token(case: Case) -> float:
    return slope(LENGTHS, [peak(case, length, SMALL, real=True) for length in LENGTHS])


@pytest.mark.parametrize("case", [Case(1), Case(1, "full"), Case(1, "full", 64)], ids=str)
def test_what_a_step_takes_grows_as_a_plan_counts(case):
    wanted = slope(LENGTHS, [planned(case, length, SMALL) for length in LENGTHS])
    assert bytes_a_token(case) == pytest.approx(wanted, rel=0.06)


def test_a_slope_is_that_of_a_line():
    assert slope((1, 2, 5), (7.0, 9.0, 15.0)) == pytest.approx(2.0)
