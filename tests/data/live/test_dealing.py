from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.live.dealing import EVEN, SLOTS, deal, lane_table, loads_of, served_lanes


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 10))
def test_each_unit_belongs_to_one_lane_and_no_lane_has_next_to_nothing(sizes: list[int], limit: int) -> None:
    dealt = deal(sizes, limit)
    assert sorted(unit for lane in dealt for unit in lane) == list(range(len(sizes)))
    assert len(dealt) <= limit
    if len(dealt) > 1:
        loads = loads_of(dealt, sizes)
        assert max(loads) - min(loads) <= max(sizes)
        assert min(loads) / sum(sizes) >= 8 / SLOTS


def test_units_of_the_same_size_are_dealt_in_order() -> None:
    assert deal([3, 3, 9, 3, 3], 3) == [[2], [0, 3], [1, 4]]


def test_tiny_files_share_a_lane_with_a_large_one() -> None:
    assert deal([100_000, 30, 30], 48) == [[0, 1, 2]]
    assert deal([6000, 30, 30], 48) == [[0], [1, 2]]


def test_equal_lanes_take_turns() -> None:
    assert lane_table([10, 11, 10], 48).tolist() == [0, 1, 2]
    assert lane_table([0], 48).tolist() == [0]


@given(st.lists(st.integers(8, 500), min_size=1, max_size=48), st.sampled_from([1, 2, 5, 48, 2000]))
def test_a_lane_serves_as_many_rows_as_it_has_text(loads: list[int], columns: int) -> None:
    table = lane_table(loads, columns)
    if max(loads) <= EVEN * min(loads):
        assert table.tolist() == list(range(len(loads)))
        return
    assert len(table) >= SLOTS
    slots = np.bincount(table, minlength=len(loads))
    assert np.abs(slots - np.array(loads) / sum(loads) * len(table)).max() <= 1


def test_the_rows_of_a_lane_are_spread_over_time() -> None:
    table = lane_table([600, 300, 100], 4)
    for part in np.array_split(table, 16):
        shares = np.bincount(part, minlength=3) / len(part)
        assert np.abs(shares - [0.6, 0.3, 0.1]).max() < 0.05


@pytest.mark.parametrize("ranks", [2, 4, 8, 16])
def test_processes_that_divide_the_columns_tokenize_few_lanes_twice(ranks: int) -> None:
    loads = [2] * 12 + [1] * 36  # 60 files that cannot be cut
    table = lane_table(loads, 48)
    served = [lane for rank in range(ranks) for lane in served_lanes(table, rank, ranks)]
    assert set(served) == set(range(48))
    assert len(served) <= 48 + ranks - 1


@pytest.mark.parametrize(
    ("lanes", "ranks", "times"), [(48, 8, 1), (48, 3, 1), (48, 48, 1), (48, 56, 7), (1, 5, 5)]
)
def test_how_often_equal_lanes_are_tokenized(lanes: int, ranks: int, times: int) -> None:
    table = lane_table([7] * lanes, 48)
    served = [lane for rank in range(ranks) for lane in served_lanes(table, rank, ranks)]
    assert sorted(served) == sorted(list(range(lanes)) * times)
