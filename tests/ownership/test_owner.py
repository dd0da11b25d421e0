"""Who owns a run, in words, and whether that process still runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit import proc
from llmkit.ownership.owner import Owner
from tests.limits import HANG

JOB = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": "2"}


def test_this_process_runs_and_says_who_it_is() -> None:
    owner = Owner.of_this_process("llmkit train x.yaml", JOB)
    assert owner.runs_here() is True
    assert str(owner).startswith(f"process {os.getpid()} on {owner.host} in SLURM job 77, started 20")
    assert str(owner).endswith("(llmkit train x.yaml)")


def test_what_is_stored_comes_back_and_anything_else_is_no_owner() -> None:
    owner = Owner.of_this_process("train", JOB)
    stored = json.loads(json.dumps(owner.to_json(released=True)))
    assert Owner.from_json(stored) == replace(owner, released=True)
    assert Owner.from_json({**stored, "new": 1}) == replace(owner, released=True)
    for damaged in ({}, {**stored, "pid": "1"}, {**stored, "released": None}):
        assert Owner.from_json(damaged) is None


def test_another_process_with_the_same_number_is_not_it() -> None:
    owner = Owner.of_this_process("train", {})
    assert replace(owner, born=str(int(owner.born) - 1)).runs_here() is False


@pytest.mark.parametrize("machine", ["", "another boot pid:[1]"])
def test_of_another_machine_nothing_is_known(machine: str) -> None:
    assert replace(Owner.of_this_process("train", {}), machine=machine).runs_here() is None


def test_a_system_without_proc_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "PROC", tmp_path)
    assert Owner.of_this_process("train", {}).runs_here() is None


def test_a_stopped_process_runs_and_a_dead_one_does_not() -> None:
    code = "import sys; from llmkit.ownership.owner import Owner; import json;"
    code += "print(json.dumps(Owner.of_this_process('x', {}).to_json()), flush=True); sys.stdin.read()"
    pipe = subprocess.PIPE
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, cwd=root) as process:
        assert process.stdout is not None
        owner = Owner.from_json(json.loads(process.stdout.readline()))
        assert owner is not None and owner.runs_here() is True
        assert "stopped by a signal" not in str(owner)
        process.send_signal(signal.SIGSTOP)
        end = time.monotonic() + HANG
        while "stopped by a signal" not in str(owner) and time.monotonic() < end:
            time.sleep(0.01)
        assert str(owner).endswith(", stopped by a signal") and owner.runs_here() is True
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody has asked how it ended
        assert owner.runs_here() is False
    assert owner.runs_here() is False


def test_only_a_later_start_of_the_same_job_succeeds() -> None:
    third = Owner.of_this_process("train", JOB)
    first = Owner.of_this_process("train", {"SLURM_JOB_ID": "77"})
    assert third.succeeds(first)
    assert not first.succeeds(third) and not third.succeeds(third)
    assert not third.succeeds(replace(first, job="78"))
    outside = Owner.of_this_process("train", {})
    assert not replace(outside, restart=1).succeeds(outside)
