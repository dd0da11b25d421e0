"""The learning rate of a run that goes on with other settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.program import recorded, rows, train

FOLDER = Path("runs/tiny")


def rate(step: int) -> float:
    return next(row["learning_rate"] for row in rows(FOLDER) if row["step"] == step and "loss" in row)


def test_more_steps_stretch_the_schedule_and_that_is_told(finished, capsys):
    assert train("train.max_steps=24") == 0
    printed = capsys.readouterr().out
    assert "train.max_steps: 12 -> 24 (command line): where the run ends" in printed
    said = f"learning rate of step 13 is {rate(13):.3g}; by the checkpoint's settings it was {rate(12):.3g}"
    assert f"{said}: the schedule now spans 24 steps instead of 12 (schedule.steps=12 " in printed
    assert rate(13) > 5 * rate(12)
    (event,) = recorded("resume")
    assert event["learning_rate"] == {"step": 13, "old": rate(12), "new": rate(13)}
    assert event["changes"] == [
        {"setting": "train.max_steps", "old": "12", "new": "24", "origin": "command line"}
    ]


def test_a_schedule_with_steps_of_its_own_is_kept(finished, capsys):
    assert train("train.max_steps=15", "schedule.steps=12") == 0
    assert "the learning rate of step" not in capsys.readouterr().out
    assert [rate(step) for step in (12, 13, 15)] == [pytest.approx(0.001)] * 3
    assert "learning_rate" not in recorded("resume")[0]
