"""How a run stands, by its folder: its events, its lock, the age of its files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from llmkit.monitor.run_state import SILENT_AT_START, SILENT_SECONDS, state_of, time_of
from llmkit.run_folder import RunFolder

NOW = 2_000_000_000.0
START = {"event": "start", "time": "2033-05-18T03:00:00.000+00:00", "step": 0}
RESUME = {"event": "resume", "time": "2033-05-18T03:10:00.000+00:00", "step": 3}
DONE = {"event": "done", "time": "2033-05-18T03:20:00.000+00:00", "step": 9}
STOP = {"event": "stop", "time": "2033-05-18T03:20:00.000+00:00", "step": 5, "reason": "SIGTERM"}
FAULT = {"event": "fault", "time": "2033-05-18T03:20:00.000+00:00", "step": 5, "reason": "OSError: x\nmore"}
REFUSED = {"event": "refused", "time": "2033-05-18T03:21:00.000+00:00", "reason": "train.x: no\n  such"}


def foreign_lock(folder: Path, host: str = "elsewhere") -> None:
    (folder / "run.lock").write_text(json.dumps({"host": host, "pid": 1, "started": "", "command": ""}))


def written(folder: Path, ago: float) -> None:
    (folder / "events.jsonl").touch()
    os.utime(folder / "events.jsonl", (NOW - ago, NOW - ago))


@pytest.mark.parametrize(
    ("events", "name", "reason"),
    [
        ([START, DONE], "done", "finished after step 9"),
        ([START, STOP], "stopped", "stopped by SIGTERM after step 5"),
        ([START, FAULT], "failed", "failed after step 5: OSError: x"),
        ([START, STOP, RESUME, DONE], "done", "finished after step 9"),
        ([START, DONE, REFUSED], "done", "finished after step 9"),
        ([START, STOP, REFUSED], "stopped", "stopped by SIGTERM after step 5"),
        ([REFUSED], "failed", "refused: train.x: no"),
        ([{"event": "stop", "reason": "Ctrl-C", "before": "the first step"}], "stopped", "stopped by Ctrl-C"),
        ([START], "failed", "ended without a word: killed, or its machine went down"),
        ([START, STOP, RESUME], "failed", "ended without a word: killed, or its machine went down"),
        ([], "failed", "never began"),
    ],
)
def test_a_run_whose_lock_nobody_holds_has_ended_by_its_newest_event(
    tmp_path: Path, events: list[dict[str, Any]], name: str, reason: str
) -> None:
    RunFolder.open(tmp_path, "llmkit train").close()
    written(tmp_path, ago=1.0)
    found = state_of(tmp_path, events, None, NOW)
    assert (found.name, found.reason) == (name, reason)


def test_who_holds_the_lock_trains_and_is_not_disturbed(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, "llmkit train")
    assert state_of(tmp_path, [START, DONE], None, NOW).name == "done"  # a run about itself
    note = tmp_path / "generations" / "00000001" / "owner.json"
    born = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    note.write_text(json.dumps({**json.loads(note.read_text()), "pid": 1, "born": born}))
    both = "is starting again or ending"
    for events, reason in (([START], "is training"), ([], "is starting"), ([START, DONE], both)):
        written(tmp_path, ago=1.0)
        found = state_of(tmp_path, events, None, NOW)
        assert (found.name, found.reason) == ("running", reason)
    run.close()
    RunFolder.open(tmp_path, "another").close()  # nobody else has taken the run


def test_a_run_that_was_taken_over_by_force_is_held_without_its_lock(tmp_path: Path) -> None:
    run = RunFolder.open(tmp_path, "llmkit train")
    (tmp_path / "run.lock").write_text("{}")
    run.claim._lock.release()  # type: ignore[attr-defined]
    written(tmp_path, ago=1.0)
    assert state_of(tmp_path, [START], None, NOW).name == "running"
    run.close()
    assert state_of(tmp_path, [START], None, NOW).name == "failed"


@pytest.mark.parametrize(
    ("row_seconds", "ago", "name"),
    [
        (None, SILENT_AT_START - 1, "running"),
        (None, SILENT_AT_START + 1, "stalled"),
        (1.0, SILENT_SECONDS - 1, "running"),
        (1.0, SILENT_SECONDS + 1, "stalled"),
        (200.0, 1999.0, "running"),
        (200.0, 2001.0, "stalled"),
    ],
)
def test_a_silent_run_is_stalled(tmp_path: Path, row_seconds: float | None, ago: float, name: str) -> None:
    foreign_lock(tmp_path)
    written(tmp_path, ago)
    found = state_of(tmp_path, [START], row_seconds, NOW)
    assert found.name == name and found.since == NOW - ago
    if name == "stalled":
        assert "only its own machine could tell" in found.reason


def test_a_run_of_another_machine_that_has_no_event_yet_is_starting(tmp_path: Path) -> None:
    foreign_lock(tmp_path)
    os.utime(tmp_path / "run.lock", (NOW, NOW))
    assert state_of(tmp_path, [], None, NOW).name == "running"


def test_a_run_that_is_marked_as_done_is_done_whatever_events_say(tmp_path: Path) -> None:
    foreign_lock(tmp_path, socket.gethostname())
    (tmp_path / "DONE").touch()
    assert state_of(tmp_path, [], None, NOW).name == "done"
    assert state_of(tmp_path, [REFUSED], None, NOW).name == "done"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"host": 3}'])
def test_a_damaged_lock_file_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.lock").write_text(content)
    written(tmp_path, ago=1.0)
    assert state_of(tmp_path, [START], None, NOW).name == "running"
    assert state_of(tmp_path, [START, STOP], None, NOW).name == "stopped"


def test_the_time_of_an_event() -> None:
    assert time_of({"time": "2033-05-18T03:33:20+00:00"}) == NOW
    assert time_of({"time": "2033-05-18T03:33:20"}) == NOW
    assert [time_of(event) for event in ({}, {"time": 3}, {"time": "soon"})] == [None] * 3
