"""Events as marks and as a table."""

from __future__ import annotations

from pathlib import Path

from llmkit.report.happened import MOST_EVENTS, describe, marks, table
from tests.report.runs import EVENTS, RESUME, START, make_run, row


def test_marks_of_a_run(tmp_path: Path):
    run = make_run(tmp_path / "run", [row(1), row(7, skipped=True)])
    found = marks(run)
    assert [(step, kind) for step, kind, _ in found] == [
        (30, "fault"), (20, "resume"), (20, "save"), (40, "save"), (7, "spike")
    ]  # fmt: skip
    assert found[0][2] == "step 30: fault (OSError: disk)"
    assert found[1][2] == "step 20: resume (train.max_steps 20 -> 40)"


def test_many_saves_are_thinned_and_nothing_else(tmp_path: Path):
    saves = [{"event": "save", "step": step, "path": "x"} for step in range(1, 2001)]
    run = make_run(tmp_path / "run", events=[START, *saves, RESUME])
    found = marks(run)
    assert sum(kind == "save" for _, kind, _ in found) <= 200 and found[0][:2] == (20, "resume")
    rows, left_out = table(run)
    assert len(rows) == MOST_EVENTS and left_out == 2002 - MOST_EVENTS
    assert rows[0][2] == "start" and rows[-1][2] == "resume"


def test_a_table_of_all_events(tmp_path: Path):
    rows, left_out = table(make_run(tmp_path / "run"))
    assert left_out == 0 and len(rows) == len(EVENTS)
    assert rows[0] == ("2026-11-29 01:00:00", "0", "start", "")
    assert rows[-1] == ("2026-11-29 01:14:05", "40", "done", "tokens 4,000")


def test_what_other_parts_show_is_left_out():
    totals = {
        "phase_seconds": {"step": 1.0},
        "account": {"useful": 1.0},
        "spent": {"cost": 1.0},
        "config": "x",
    }
    assert describe({"event": "done", "tokens": 5, **totals}) == "done (tokens 5)"


def test_odd_events_are_texts():
    assert describe({"event": "x\n\x1b[0m", "a": 1.23456, "b": {"c": "d"}, "e": [1, "f"], "g": None}) == (
        r'x\n\x1b[0m (a 1.235; b c "d"; e 1, f)'
    )
    assert describe({"event": None, "changes": ["odd"]}) == "None"
    assert len(describe({"event": "fault", "reason": "y" * 10_000})) == 400
