"""Saves that are killed, cut off from power or out of space leave the old checkpoint or the new one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from llmkit.checkpoint import read, write
from llmkit.checkpoint.pieces import Piece
from tests.limits import HANG

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders that killed saves left."""
    root = tmp_path_factory.mktemp("killed")
    command = [sys.executable, HERE / "killed_saves.py", root]
    subprocess.run(command, check=True, env=ENVIRONMENT, timeout=HANG)
    return root


@pytest.mark.parametrize("scenario", ["next_step", "same_step", "after_a_crash", "power_cut"])
def test_a_killed_save_leaves_the_old_checkpoint_or_the_new_one(killed: Path, scenario: str) -> None:
    folder = killed / scenario
    calls = (folder / "calls.txt").read_text().split()
    assert len(calls) >= 10
    assert {"open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir"} == set(calls)
    seen = set()
    for number, call in enumerate(calls):
        root = folder / str(number)
        where = f"killed before call {number}, {call}: {sorted(path.name for path in root.iterdir())}"
        said: list[str] = []
        found = read.newest(root, said.append)
        assert found is not None and said == [], where
        assert all(read.verify(folder) == [] for folder in read.folders(root)), where
        value = found.state["value"]
        assert all(torch.all(found.read(name, "master") == value) for name in ("a", "b")), where
        seen.add(value)
        _check_next_save(root, where)
    assert seen == {1.0, 2.0}


def _check_next_save(root: Path, where: str) -> None:
    piece = Piece("a", "master", (3,), ((0, 3),), (0, 3), torch.zeros(3))
    write.save(root, 3, [piece], state={}, model={}, config={}, extra_files={}, keep_last=1)
    assert [path.name for path in root.iterdir()] == ["step-00000003"], where
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What saves onto full and read-only disks did."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare(1) to mount a small disk with")
    allowed = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    if allowed.returncode != 0:
        pytest.skip(f"mounting a small disk is not permitted: {allowed.stderr.decode().strip()}")
    command = ["unshare", "-m", sys.executable, str(HERE / "full_disks.py")]
    root = str(tmp_path_factory.mktemp("disks"))
    done = subprocess.run([*command, root], check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, timeout=HANG)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_disk_costs_only_the_checkpoint_that_did_not_fit(disks: dict[str, Any], what: str) -> None:
    case = disks[what]
    assert case["first"] == "saved"
    assert "step-00000002: No space left on device (it needs 8000000 bytes," in case["second"]
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
