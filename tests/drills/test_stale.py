"""Processes of a start that is over for its batch system, and that go on: they publish nothing any more."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests import fork_server
from tests.fork_server import Process
from tests.limits import HANG
from tests.program import environment, events, make_project, recorded, rows
from tests.ranks import world

Measured = Callable[[str, float | str, str], None]
JOB = {"SLURM_JOB_ID": "4711"}
ENDLESS = [
    "train.max_steps=1000000", "checkpoint.every_steps=5", "checkpoint.keep_last=2",
    "monitor.log_samples=true",
]  # fmt: skip


def begin(folder: Path, size: int, variables: dict[str, str], *overrides: str) -> list[Process]:
    command, own = ["train", "tiny.yaml", *overrides], environment() | variables
    ranks = world(size) if size > 1 else [{}]
    return [fork_server.start("llmkit", command, cwd=folder, environment=own | rank) for rank in ranks]


def steps(run: Path) -> list[int]:
    return [row["step"] for row in rows(run) if "loss" in row]


def wait_for_saves(folder: Path, count: int, processes: Sequence[Process]) -> None:
    end = time.monotonic() + HANG
    while not (folder / "events.jsonl").exists() or events(folder).count("save") < count:
        assert time.monotonic() < end and all(process.poll() is None for process in processes), [
            (process.poll(), process.output()) for process in processes
        ]
        time.sleep(0.005)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Inode and content of every file of a run but its logs, and `STOP`, which is nobody's to remove."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


@pytest.mark.drill(
    "D48",
    injection="all ranks stopped, the job started again elsewhere and finished, the ranks continued",
    expected="they end with exit code 1; of the run folder no byte and no file has changed",
)
@pytest.mark.parametrize("size", [1, 2])
def test_a_stale_start_that_wakes_up_publishes_nothing(tmp_path: Path, size: int, measured: Measured) -> None:
    """As where slurmd dies: the processes of the job are left over, the job is requeued on another node."""
    make_project(tmp_path)
    run = tmp_path / "runs" / "tiny"
    stale = begin(tmp_path, size, JOB, *ENDLESS)
    wait_for_saves(run, 2, stale)
    for process in stale:
        os.kill(process.pid, signal.SIGSTOP)
    done = rows(run)[-1]["step"]
    (fresh,) = begin(tmp_path, 1, JOB | {"SLURM_RESTART_COUNT": "1"}, f"train.max_steps={done + 20}")
    assert fresh.wait(HANG) == 0, fresh.output()
    assert steps(run) == list(range(1, done + 21))
    assert [event["generation"] for event in recorded("start", run) + recorded("resume", run)] == [1, 2]
    before = contents(run)
    for process in stale:
        os.kill(process.pid, signal.SIGCONT)
    began = time.monotonic()
    codes = [process.wait(HANG) for process in stale]
    measured("until they ended", time.monotonic() - began, "s")
    assert contents(run) == before
    said = "".join(process.output() for process in stale)
    assert codes == [1] * size and "taken over by generation 2 (process" in said, said
    assert "Traceback" not in said, said


@pytest.mark.drill(
    "D33",
    injection="a second start on the same folder, then one with --take-over",
    expected="the second refuses and names the owner; the third gets the run, saved, without a lost step",
)
def test_a_run_that_is_asked_for_is_saved_and_handed_over(tmp_path: Path, measured: Measured) -> None:
    make_project(tmp_path)
    run = tmp_path / "runs" / "tiny"
    (first,) = begin(tmp_path, 1, {}, *ENDLESS)
    wait_for_saves(run, 1, [first])
    began = time.monotonic()
    (second,) = begin(tmp_path, 1, {}, "train.max_steps=5")
    assert second.wait(HANG) == 2
    measured("until it refused, with its start", time.monotonic() - began, "s")
    assert f"is in use by process {first.pid} on" in second.output() and first.poll() is None
    (third,) = begin(tmp_path, 1, {}, "train.max_steps=5000000", "--take-over")
    assert first.wait(HANG) == 75, first.output()
    wait_for_saves(run, len(recorded("save", run)) + 1, [third])
    os.kill(third.pid, signal.SIGTERM)
    assert third.wait(HANG) == 75, third.output()
    (taken,) = recorded("take_over", run)
    assert f"process {first.pid} on" in taken["before"] and taken["forced"] is False
    assert not (run / "STOP").exists()
    assert steps(run) == list(range(1, steps(run)[-1] + 1))
    assert "again_up_to" not in recorded("resume", run)[0]  # no step was lost
