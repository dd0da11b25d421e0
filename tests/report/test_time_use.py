"""Where the seconds of a run went."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.report.time_use import TRAINING, time_use
from tests.report.runs import EVENTS, START, make_run, row


def seconds(run) -> dict[str, float]:
    return {use.name: pytest.approx(use.seconds) for use in time_use(run)}


def test_of_a_run_that_has_recorded_it(tmp_path: Path):
    rows = [
        row(
            1,
            elapsed_seconds=100.0,
            **{"lost/save": 15.0, "lost/down": 25.0, "lost/data": 0.0, "lost/x": None},
        )
    ]
    found = time_use(make_run(tmp_path / "run", rows))
    assert [(use.name, use.seconds, use.begins, use.share) for use in found] == [
        (TRAINING, 60.0, 0.0, 60.0), ("between starts", 25.0, 60.0, 25.0), ("saving", 15.0, 85.0, 15.0)
    ]  # fmt: skip
    assert found[2].meaning.startswith("waiting for checkpoints")
    others = make_run(tmp_path / "other", [row(1, elapsed_seconds=9.0, **{"lost/other": 4.0})])
    assert time_use(others)[1].meaning.startswith("hooks, ")


def test_an_event_may_know_more_than_the_newest_row(tmp_path: Path):
    done = {"event": "done", "account": {"useful": 70.0, "lost": {"save": 40.0, "odd": "x"}}}
    odd = [
        {"event": "stop", "account": account} for account in (3, {"useful": 1e9}, {"useful": "1", "lost": {}})
    ]
    rows = [row(1, elapsed_seconds=100.0, **{"lost/save": 40.0})]
    assert seconds(make_run(tmp_path / "run", rows, events=[*odd, done])) == {TRAINING: 70.0, "saving": 40.0}
    done["account"]["useful"] = 50.0
    assert seconds(make_run(tmp_path / "row", rows, events=[done])) == {TRAINING: 60.0, "saving": 40.0}


def test_of_an_older_run_by_its_events(tmp_path: Path):
    phases = {"start": 50.0, "step": 100.0, "save": 20.0, "odd": "x"}
    first = {"time": "2026-11-29T01:02:30.000+00:00", "event": "stop", "step": 30, "phase_seconds": phases}
    run = make_run(tmp_path / "run", events=[START, first, *EVENTS[3:]])
    # 150 s of the first start of which 120 s are told, 450 s until the second one, which ran for 245 s
    assert seconds(run) == {
        "step": 100.0, "between starts": 450.0, "rest": 30.0 + 245.0, "saving": 20.0,
    }  # fmt: skip
    assert next(iter(seconds(run))) == "step"


def test_a_version_that_did_not_divide_it(tmp_path: Path):
    assert seconds(make_run(tmp_path / "run")) == {"running": 180.0 + 245.0, "between starts": 420.0}
    assert time_use(make_run(tmp_path / "other", events=[])) == []
