from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.live.demand import demands, merge_cursors, served_lanes
from llmkit.errors import RunFault


@given(
    lanes=st.integers(1, 60), ranks=st.integers(1, 20),
    positions=st.lists(st.integers(0, 500), unique=True, max_size=80),
)  # fmt: skip
def test_every_position_is_wanted_by_its_rank_alone_and_lanes_go_on_in_order(
    lanes: int, ranks: int, positions: list[int]
) -> None:
    taken: dict[int, int] = {}
    moved: dict[int, list[int]] = {}
    for rank in range(ranks):
        for demand in demands(np.array(sorted(positions), dtype=np.int64), lanes, rank, ranks):
            assert demand.lane in served_lanes(lanes, rank, ranks)
            moved.setdefault(demand.lane, demand.positions.tolist())
            assert moved[demand.lane] == demand.positions.tolist(), "all ranks move a lane alike"
            assert all(g % lanes == demand.lane for g in demand.positions)
            for g in demand.positions[demand.wanted].tolist():
                assert taken.setdefault(g, rank) == rank == g % ranks
    assert sorted(taken) == sorted(positions)


@pytest.mark.parametrize(
    ("lanes", "ranks", "times"), [(48, 8, 1), (48, 3, 1), (48, 48, 1), (48, 56, 7), (1, 5, 5)]
)
def test_how_often_a_lane_is_tokenized(lanes: int, ranks: int, times: int) -> None:
    served = [lane for rank in range(ranks) for lane in served_lanes(lanes, rank, ranks)]
    assert sorted(served) == sorted(list(range(lanes)) * times)


def test_what_ranks_know_of_lanes_is_put_together() -> None:
    known = [json.dumps([None, {"0": [1], "2": [3]}]), json.dumps([None, {"1": [2], "2": [3]}])]
    assert merge_cursors([None, {"0": [1]}], ["a", "b"], lambda text: known) == [
        None, {"0": [1], "2": [3], "1": [2]},
    ]  # fmt: skip


def test_ranks_that_disagree_about_a_lane_are_a_fault() -> None:
    known = [json.dumps([{"0": [1]}]), json.dumps([{"0": [2]}])]
    with pytest.raises(RunFault, match=r"source web: processes .* disagree about lane 0"):
        merge_cursors([{}], ["web"], lambda text: known)
