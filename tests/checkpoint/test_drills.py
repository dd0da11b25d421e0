"""Saves that are killed, cut off from power or out of space leave the old checkpoint or the new one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import read, write
from llmkit.checkpoint.pieces import Piece
from tests.checkpoint.killed_ranks import FAULT
from tests.fork_server import ROOT, start
from tests.limits import HANG
from tests.program import environment

Measured = Callable[[str, float | str, str], None]
SCENARIOS = ["next_step", "same_step", "after_a_crash"]


def run(module: str, folder: Path) -> Path:
    """What a module of this folder has done in a folder."""
    process = start(f"tests.checkpoint.{module}", [str(folder)], cwd=ROOT, environment=environment())
    assert process.wait(HANG) == 0, process.output()
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that killed saves left."""
    return run("killed_saves", tmp_path_factory.mktemp("killed"))


@pytest.mark.drill(
    "D3",
    injection="kill -9 at each call of a save that changes the disk: of a new step, of one that is replaced",
    expected="the old checkpoint or the new one is found and verifies; the next save cleans up",
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_killed_save_leaves_the_old_checkpoint_or_the_new_one(
    killed: Path, scenario: str, measured: Measured
) -> None:
    measured("kills", old_or_new(killed / scenario), "")


@pytest.mark.drill(
    "D5",
    injection="the same, and files that were not synced lose their content",
    expected="as D3",
)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_leaves_the_old_checkpoint_or_the_new_one(
    killed: Path, scenario: str, measured: Measured
) -> None:
    measured("power cuts", old_or_new(killed / f"power_cut_{scenario}"), "")


def old_or_new(folder: Path) -> int:
    """Checks what each kill has left; returns how many there were."""
    calls = (folder / "calls.txt").read_text().split()
    assert len(calls) >= 10
    assert {"open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir"} == set(calls)
    seen = set()
    for number, call in enumerate(calls):
        root = folder / str(number)
        seen.add(_value(root, f"killed before call {number}, {call}"))
    assert seen == {1.0, 2.0}
    return len(calls)


def _value(root: Path, what: str) -> float:
    """Of all elements of the newest checkpoint, which must be whole; and the next save must work."""
    where = f"{what}: {sorted(path.name for path in root.iterdir())}"
    said: list[str] = []
    found = read.newest(root, said.append)
    assert found is not None and said == [], where
    assert all(read.verify(folder) == [] for folder in read.folders(root)), where
    value = float(found.state["value"])
    assert all(torch.all(found.read(name, "master") == value) for name in ("a", "b")), where
    _check_next_save(root, where)
    return value


@pytest.fixture(scope="module")
def killed_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that two ranks left of which one was killed, or stopped for a moment."""
    return run("killed_ranks", tmp_path_factory.mktemp("ranks"))


@pytest.mark.drill(
    "D3",
    injection="kill -9 of either of two ranks at each call of a save that changes the disk",
    expected="the other rank's save fails or is over; the old checkpoint or the new one is found",
)
@pytest.mark.parametrize("victim", [0, 1])
def test_either_rank_may_be_killed_in_a_save(killed_ranks: Path, victim: int, measured: Measured) -> None:
    ended = json.loads((killed_ranks / "ended.json").read_text())
    values = set()
    for number, call in enumerate(ended["calls"][victim]):
        name = f"killed-{victim}-{number}"
        codes = ended["codes"][name]
        assert codes[victim] == -9 and codes[1 - victim] in (0, FAULT), (name, call, codes)
        values.add(_value(killed_ranks / name, name))
    assert values == ({1.0, 2.0} if victim == 0 else {1.0})
    measured("kills", len(ended["calls"][victim]), "")


@pytest.mark.drill(
    "D10",
    injection="SIGSTOP of either of two ranks in a save, then SIGCONT",
    expected="meanwhile the old checkpoint or the new one is found; then the save ends as ever",
)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_stopped_for_a_moment_spoils_no_save(
    killed_ranks: Path, victim: int, measured: Measured
) -> None:
    codes = json.loads((killed_ranks / "ended.json").read_text())["codes"]
    names = [name for name in codes if name.startswith(f"stopped-{victim}-")]
    for name in names:
        assert codes[name] == [0, 0], name
        assert _value(killed_ranks / name, name) == 2.0
    assert len(names) >= 2
    measured("stops", len(names), "")


def _check_next_save(root: Path, where: str) -> None:
    piece = Piece("a", "master", (3,), ((0, 3),), (0, 3), torch.zeros(3))
    write.save(root, 3, [piece], state={}, model={}, config={}, extra_files={}, keep_last=1)
    assert [path.name for path in root.iterdir()] == ["step-00000003"], where
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What saves onto full and read-only disks did."""
    folder = run("full_disks", tmp_path_factory.mktemp("disks"))
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    if "cannot" in report:
        pytest.skip(f"small disks cannot be mounted: {report['cannot']}")
    return report


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_disk_costs_only_the_checkpoint_that_did_not_fit(disks: dict[str, Any], what: str) -> None:
    case = disks[what]
    assert case["first"] == "saved"
    assert "step-00000002: No space left on device (it needs 7.6 MiB," in case["second"]
    assert case["seen"] == {"newest": 1, "names": ["step-00000001"]}
    assert case["third"] == "saved"
    assert case["after"] == {"newest": 2, "names": ["step-00000001", "step-00000002"]}


def test_a_disk_that_turns_read_only_keeps_what_it_has(disks: dict[str, Any]) -> None:
    case = disks["read-only"]
    assert case["first"] == "saved"
    assert "step-00000002: Read-only file system" in case["second"]
    assert case["seen"] == {"newest": 1, "names": ["step-00000001"]}


def test_a_read_only_run_folder_is_refused_by_name(disks: dict[str, Any]) -> None:
    opened = disks["read-only"]["opened"]
    assert "read-only as the run folder: Read-only file system" in opened
