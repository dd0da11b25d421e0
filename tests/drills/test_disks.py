"""Disks that fill up, turn read-only, fail, vanish or are slow while a run saves on them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import fork_server
from tests.limits import HANG
from tests.program import environment, make_project

Measured = Callable[[str, float | str, str], None]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What runs on such disks did; all in one process."""
    folder = tmp_path_factory.mktemp("disks")
    make_project(folder)
    process = fork_server.start(
        "tests.drills.disk_cases", [str(folder)], cwd=Path.cwd(), environment=environment()
    )
    assert process.wait(HANG) == 0, process.output()
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    if "cannot" in report:
        pytest.skip(f"disks cannot be mounted: {report['cannot']}")
    return report


def went_on(case: dict[str, Any], says: str) -> None:
    """Only the save after step 6 failed; nothing else is missing."""
    assert case["code"] == 0, case["errors"]
    (failed,) = case["failed"]
    assert failed["step"] == 6 and says in failed["reason"], failed
    assert "NOT SAVED, training goes on: " in case["output"]
    assert case["newest"] == [3] and case["saves"] == [3, 9, 12]
    assert case["left"] == ["step-00000009", "step-00000012"]
    assert case["same"], "the record is that of a run on a disk with room"


@pytest.mark.drill(
    "D16",
    injection="the disk with the run folder is full from step 5 to step 8: bytes, or inodes",
    expected="the save of step 6 fails by path and bytes, training goes on, the next save is there",
)
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_disk_costs_one_checkpoint(cases: dict[str, Any], what: str, measured: Measured) -> None:
    case = cases[what]
    went_on(case, "checkpoints/step-00000006: No space left on device (")
    assert re.search(r"[(, ][\d,.]+ (bytes|MiB|GiB) are free\)$", case["failed"][0]["reason"])
    measured("saves that failed", len(case["failed"]), f"of {len(case['failed'] + case['saves'])}")


@pytest.mark.drill(
    "D17",
    injection="files of a checkpoint cannot be made (EIO) from step 5 to step 8",
    expected="as on a full disk",
)
def test_a_failing_disk_costs_one_checkpoint(cases: dict[str, Any], measured: Measured) -> None:
    case = cases["failing"]
    went_on(case, "checkpoints/step-00000006: Input/output error")
    measured("saves that failed", len(case["failed"]), f"of {len(case['failed'] + case['saves'])}")


@pytest.mark.drill(
    "D17",
    injection="the run folder turns read-only, or its disk vanishes, for good",
    expected="the run ends with the reason after checkpoint.max_failed_saves (2); the next start goes on",
)
@pytest.mark.parametrize(
    ("what", "says"), [("read-only", "Read-only file system"), ("vanishing", "No such file or directory")]
)
def test_a_disk_that_stays_away_ends_the_run(
    cases: dict[str, Any], what: str, says: str, measured: Measured
) -> None:
    case = cases[what]
    assert case["code"] == 1
    ends = re.search(r"(\d) saves in a row .*checkpoints/step-(\d+)", case["errors"])
    assert ends is not None and says in case["errors"] and ends.groups() == ("2", "00000009"), case["errors"]
    assert case.get("left under it", []) == []
    resumed = case["resumed"]
    assert (resumed["code"], resumed["from"]) == (0, [3]), resumed["errors"]
    assert resumed["saves"] == [3, 6, 9, 12] and resumed["same"]
    measured("failed saves before the end", int(ends[1]), "")
    measured("steps lost", int(ends[2]) - resumed["from"][0], "")


@pytest.mark.drill(
    "D18",
    injection="each file of one save takes a second to reach the disk",
    expected="one save at a time; the wait is recorded as that of the save, and no alarm is raised",
)
def test_a_slow_disk_is_waited_for_and_recorded(cases: dict[str, Any], measured: Measured) -> None:
    case = cases["slow"]
    assert case["code"] == 0 and case["failed"] == [] and case["same"]
    assert case["waited"] >= 4.0
    assert case["rows"]["7"] >= case["waited"] > case["rows"]["6"] + case["rows"]["5"]
    measured("delay", case["waited"], "s")
    measured("recorded as time/save", case["rows"]["7"], "s")
