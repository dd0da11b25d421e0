"""Runs that are killed while a thread writes a checkpoint go on from the one before, or from that one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.drills.test_kill import final_state
from tests.fork_server import ROOT, start
from tests.limits import HANG
from tests.program import environment, make_project

DRILL = {
    "injection": "kill -9 of one rank (or SIGSTOP of rank 0, for a moment) at calls to the disk of the "
    "thread that writes its checkpoint",
    "expected": "the checkpoint before or the new one is found and verifies; the next start leaves no "
    "temporary file, and ends as a run that nothing disturbed",
}


def killed(folder: Path, layout: str, every: int) -> dict[str, Any]:
    """What each kill has left."""
    make_project(folder)
    arguments = [str(folder), layout, str(every)]
    process = start("tests.loop.killed_background", arguments, cwd=ROOT, environment=environment())
    assert process.wait(6 * HANG) == 0, process.output()
    found: dict[str, Any] = json.loads((folder / f"{layout}.json").read_text())
    return found


@pytest.mark.drill("D3", **DRILL)
@pytest.mark.parametrize(
    ("layout", "every", "least"),
    [
        ("native", 13, 4),
        pytest.param("native", 1, 50, marks=pytest.mark.exhaustive),
        pytest.param("zero3-tp2", 2, 50, marks=pytest.mark.exhaustive),
    ],
)
def test_a_kill_in_the_background_leaves_a_checkpoint(
    tmp_path: Path, layout: str, every: int, least: int, measured: Any
) -> None:
    found = killed(tmp_path, layout, every)
    straight = tmp_path / "runs" / found["straight"]
    wanted = final_state(straight, 6)
    steps = set()
    for each in found["points"]:
        assert each["codes"][each["rank"]] == -9 and 0 not in each["codes"], each
        assert each["said"] == [] and each["bad"] == [], each
        assert all(name.startswith("step-") for name in each["left"]), each
        steps.add(each["newest"])
        if "again" in each:
            assert set(each["again"]) == {0} and each["left"][-1] == "step-00000006", each
            run = f"{layout}-{each['rank']}-{each['number']}"
            again = final_state(tmp_path / "runs" / run, 6)
            assert again.keys() == wanted.keys()
            assert all(again[key].equal(wanted[key]) for key in wanted), each
    assert len(found["points"]) >= least and steps >= {None, 2, 4}
    measured("kills", len(found["points"]), f"on {layout}")
    for each in found["stops"]:  # of rank 0, for a moment
        assert set(each["codes"]) == {0} and each["meanwhile"] in (None, 2, 4, 6), each
        state = final_state(tmp_path / "runs" / each["name"], 6)
        assert all(state[key].equal(wanted[key]) for key in wanted), each
    measured("stops", len(found["stops"]), f"on {layout}")
