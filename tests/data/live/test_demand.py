from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.live.dealing import lane_table, served_lanes
from llmkit.data.live.demand import demands, merge_cursors
from llmkit.errors import RunFault


@given(
    loads=st.lists(st.integers(8, 40), min_size=1, max_size=60), ranks=st.integers(1, 20),
    positions=st.lists(st.integers(0, 500), unique=True, max_size=80),
    turns=st.lists(st.integers(0, 100), min_size=48, max_size=48),
    omitted=st.lists(st.integers(0, 500), max_size=9),
)  # fmt: skip
def test_every_position_is_wanted_by_its_rank_alone_and_lanes_go_on_in_order(
    loads: list[int], ranks: int, positions: list[int], turns: list[int], omitted: list[int]
) -> None:
    table = lane_table(loads, 48)
    lanes = {g: int(table[turns[g % 48] % len(table), g % 48]) for g in positions}
    taken: dict[int, int] = {}
    moved: dict[int, list[int]] = {}
    for rank in range(ranks):
        served = served_lanes(table, rank, ranks)
        ordered = np.array(sorted(positions), dtype=np.int64)
        of_rows = np.array([lanes[g] for g in sorted(positions)])
        is_omitted = np.isin(ordered, omitted)
        for demand in demands(ordered, of_rows, is_omitted, served, rank, ranks):
            assert demand.lane in served
            moved.setdefault(demand.lane, demand.numbers.tolist())
            assert moved[demand.lane] == demand.numbers.tolist(), "all ranks move a lane alike"
            assert {lanes[g] for g in demand.numbers.tolist()} == {demand.lane}
            for g in demand.numbers[demand.wanted].tolist():
                assert taken.setdefault(g, rank) == rank == g % ranks
    assert sorted(taken) == sorted(set(positions) - set(omitted))


def test_what_ranks_know_of_lanes_is_put_together() -> None:
    known = [json.dumps([None, {"0": [1], "2": [3]}]), json.dumps([None, {"1": [2], "2": [3]}])]
    assert merge_cursors([None, {"0": [1]}], ["a", "b"], lambda text: known) == [
        None, {"0": [1], "2": [3], "1": [2]},
    ]  # fmt: skip


def test_ranks_that_disagree_about_a_lane_are_a_fault() -> None:
    known = [json.dumps([{"0": [1]}]), json.dumps([{"0": [2]}])]
    with pytest.raises(RunFault, match=r"source web: processes .* disagree about lane 0"):
        merge_cursors([{}], ["web"], lambda text: known)
