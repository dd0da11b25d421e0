from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.live.heldout import heldout_candidates, heldout_units


@given(units=st.integers(0, 500), every=st.integers(0, 50))
def test_at_most_16_units_evenly_spread_give_at_most_16_documents(units: int, every: int) -> None:
    chosen = heldout_units(units, every)
    assert len(chosen) == (min(units, 16) if every else 0)
    assert chosen == sorted(set(chosen) & set(range(units)))
    gaps = [after - before for before, after in pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert len(heldout_candidates(every)) == (16 if every else 0)


@pytest.mark.parametrize(("every", "first"), [(1, [0, 1, 2]), (20, [19, 39, 59])])
def test_one_candidate_in_so_many_is_held_out(every: int, first: list[int]) -> None:
    assert list(heldout_candidates(every))[:3] == first
