"""A run seen from outside."""

from __future__ import annotations

import json
from pathlib import Path

from llmkit.watch.watched import WatchedRun, whole
from tests.watch.folders import add_event, add_row, make_run


def test_a_run_is_followed_row_by_row(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", steps=3, max_steps=10, save_every=5, evaluate_every=2)
    run = WatchedRun(folder)
    run.poll()
    progress = run.progress
    assert (progress.name, progress.step, progress.max_steps) == ("demo", 3, 10)
    assert (progress.save_every, progress.evaluate_every) == (5, 2)
    assert progress.losses.points[-1] == (3, 7.0) and progress.currency == "EUR"
    add_row(folder, {"step": 4, "loss": 2.5})
    add_event(folder, {"event": "save", "step": 4})
    run.poll()
    assert (progress.step, progress.row["loss"]) == (4, 2.5)
    assert progress.last_event is not None and progress.last_event.text == "saved step 4"


def test_a_resume_that_cuts_the_record_back_begins_the_view_anew(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", steps=9)
    run = WatchedRun(folder)
    run.poll()
    rows = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(rows[:4]))
    run.poll()
    assert run.progress.step == 4 and len(run.progress.losses.points) == 4
    assert run.progress.last_event is not None  # events are read again, too


def test_a_run_that_is_resumed_after_a_fault_is_where_its_rows_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", steps=40, end={"event": "fault", "step": 52})
    followed = WatchedRun(folder)
    followed.poll()
    assert followed.progress.step == 52
    add_event(folder, {"event": "resume", "step": 40})
    followed.poll()
    assert followed.progress.step == 40
    add_row(folder, {"step": 41, "loss": 2.5})
    for run in (followed, WatchedRun(folder)):  # also where all of it is read at once
        run.poll()
        assert run.progress.step == 41


def test_the_steps_that_a_time_budget_became_win_over_those_of_the_settings(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo", steps=3, max_steps=None)
    run = WatchedRun(folder)
    run.poll()
    assert run.progress.max_steps is None
    add_event(folder, {"event": "max_steps", "max_steps": 77})
    run.poll()
    assert run.progress.max_steps == 77
    add_event(folder, {"event": "resume", "step": 3})
    (folder / "manifest.json").write_text(json.dumps({"max_steps": 100}))
    run.poll()
    assert run.progress.max_steps == 100


def test_a_folder_with_nothing_or_nonsense_in_it_is_an_empty_view(tmp_path: Path) -> None:
    run = WatchedRun(tmp_path)
    run.poll()
    assert run.progress.step == 0
    for text in ("[1]", "{", '{"schedule": 3, "max_steps": "many"}', '{"max_steps": true}'):
        (tmp_path / "manifest.json").write_text(text)
        (tmp_path / "metrics.jsonl").write_text('{"step": "x"}\n{"step": 1, "loss": "low", "mfu": [1]}\n7\n')
        run.poll()
        assert run.progress.max_steps is None
    assert (run.progress.step, run.progress.row) == (1, {})
    (tmp_path / "manifest.json").unlink()
    run.poll()
    assert whole(-1) is None and whole(True) is None
