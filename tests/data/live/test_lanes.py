from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.live import lanes as lanes_module
from llmkit.data.live.lanes import (
    EVEN,
    assign_splits,
    lane_sizes,
    lane_table,
    largest_share,
    merge_cursors,
    rounds_of,
    served_lanes,
)
from llmkit.errors import RunFault


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.integers(1, 10))
def test_each_unit_belongs_to_one_lane_and_no_lane_has_next_to_nothing(sizes: list[int], limit: int) -> None:
    dealt = assign_splits(sizes, limit, limit)
    assert sorted(unit for lane in dealt for unit in lane) == list(range(len(sizes)))
    assert len(dealt) <= limit
    if len(dealt) > 1:
        loads = lane_sizes(dealt, sizes)
        assert max(loads) - min(loads) <= max(sizes)
        assert min(loads) * rounds_of(limit) * limit >= 8 * sum(sizes)


def test_units_of_the_same_size_are_dealt_in_order() -> None:
    assert assign_splits([3, 3, 9, 3, 3], 3, 48) == [[2], [0, 3], [1, 4]]


def test_tiny_files_share_a_lane_with_a_large_one() -> None:
    assert assign_splits([100_000, 30, 30], 48, 48) == [[0, 1, 2]]
    assert assign_splits([6000, 30, 30], 48, 48) == [[0], [1, 2]]


def test_equal_lanes_take_turns() -> None:
    assert lane_table([10, 11, 10], 6).tolist() == [[0, 1, 2, 0, 1, 2]]
    assert lane_table([0], 3).tolist() == [[0, 0, 0]]


@given(st.lists(st.integers(8, 500), min_size=1, max_size=48), st.sampled_from([1, 2, 5, 48, 300]))
def test_a_lane_serves_as_many_rows_as_it_has_text(loads: list[int], columns: int) -> None:
    table = lane_table(loads, columns)
    if max(loads) <= EVEN * min(loads) and columns % len(loads) == 0:
        assert table.tolist() == [[column % len(loads) for column in range(columns)]]
        return
    assert table.shape == (rounds_of(columns), columns)
    slots = np.bincount(table.ravel(), minlength=len(loads))
    assert np.abs(slots - np.array(loads) / sum(loads) * table.size).max() <= 1


def test_the_rows_of_a_lane_are_spread_over_time() -> None:
    table = lane_table([600, 300, 100], 4).ravel()
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
    ("lanes", "ranks", "times"), [(48, 8, 1), (48, 3, 1), (48, 48, 1), (48, 56, 7), (1, 5, 5), (24, 8, 1)]
)
def test_how_often_equal_lanes_are_tokenized(lanes: int, ranks: int, times: int) -> None:
    table = lane_table([7] * lanes, 48)
    served = [lane for rank in range(ranks) for lane in served_lanes(table, rank, ranks)]
    assert sorted(served) == sorted(list(range(lanes)) * times)


@pytest.mark.parametrize("lanes", [48, 128, 256, 512])
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_there_are_as_many_lanes_as_are_asked_for_where_text_can_be_cut(lanes: int, spread: float) -> None:
    sizes = (np.random.default_rng(0).lognormal(0, spread, 4096) * 1e6).astype(int).tolist()
    dealt = assign_splits(sizes, lanes, lanes)
    assert len(dealt) == lanes
    loads = lane_sizes(dealt, sizes)
    for ranks in (8, 16):
        assert largest_share(lane_table(loads, lanes), loads, ranks) < 1.3 / ranks + 1 / lanes


@pytest.mark.parametrize("files", [5, 7, 10, 20, 31, 47])
@pytest.mark.parametrize("ranks", [2, 8, 16])
def test_few_files_of_one_size_are_not_tokenized_by_every_process(files: int, ranks: int) -> None:
    loads = lane_sizes(assign_splits([1000] * files, 48, 48), [1000] * files)
    assert len(loads) == files
    assert largest_share(lane_table(loads, 48), loads, ranks) <= 1 / ranks + 2 / files


def test_lanes_that_would_have_next_to_nothing_are_fewer_and_divide_the_columns() -> None:
    sizes = [100_000] * 30 + [10] * 10
    assert len(assign_splits(sizes, 40, 48)) == 24


def test_forty_thousand_units_are_dealt_in_a_few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []
    real = lanes_module._assign
    monkeypatch.setattr(lanes_module, "_assign", lambda *a: tries.append(a[2]) or real(*a))
    assign_splits([1000] * 39_999 + [10**9], 512, 512)
    assert len(tries) <= 10


def test_what_ranks_know_of_lanes_is_put_together() -> None:
    known = [json.dumps([None, {"0": [1], "2": [3]}]), json.dumps([None, {"1": [2], "2": [3]}])]
    assert merge_cursors([None, {"0": [1]}], ["a", "b"], lambda text: known) == [
        None, {"0": [1], "2": [3], "1": [2]},
    ]  # fmt: skip


def test_ranks_that_disagree_about_a_lane_are_a_fault() -> None:
    known = [json.dumps([{"0": [1]}]), json.dumps([{"0": [2]}])]
    with pytest.raises(RunFault, match=r"source web: processes .* disagree about lane 0"):
        merge_cursors([{}], ["web"], lambda text: known)
