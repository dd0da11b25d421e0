from __future__ import annotations

import copy

from llmkit.data.lane_cursors import LaneCursors
from tests.data.live.fakes import live
from tests.data.toy import toy


def test_a_move_is_undone_once_and_not_after_a_new_beginning() -> None:
    prepared, _ = toy({"web": live([["abc"], ["de"]])})
    lanes = LaneCursors(prepared.sources, rank=0, world_size=1)
    lanes.begin([{"0": [0, 1, 0, 0]}])
    assert list(lanes.move({(0, 0): [0, 2, 0, 0], (0, 1): [0, 1, 0, 0]})) == []
    lanes.undo_last()
    assert lanes.cursors == [{"0": [0, 1, 0, 0]}]

    list(lanes.move({(0, 0): [0, 3, 0, 0]}))
    before, known = lanes.cursors, copy.deepcopy(lanes.cursors)
    lanes.begin(before)
    lanes.undo_last()
    assert lanes.cursors == before == known
