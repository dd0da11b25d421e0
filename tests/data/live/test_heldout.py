from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.live.heldout import heldout_records


@given(splits=st.integers(0, 500), every=st.integers(0, 50))
def test_at_most_16_splits_evenly_spread_give_at_most_16_documents(splits: int, every: int) -> None:
    chosen = heldout_records(splits, every)
    assert len(chosen) == (min(splits, 16) if every else 0)
    assert list(chosen) == sorted(set(chosen) & set(range(splits)))
    gaps = [after - before for before, after in pairwise(chosen)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert {len(records) for records in chosen.values()} <= {16}


@pytest.mark.parametrize(("every", "first"), [(1, [0, 1, 2]), (20, [19, 39, 59])])
def test_one_record_in_so_many_is_held_out(every: int, first: list[int]) -> None:
    assert list(heldout_records(3, every)[2])[:3] == first
