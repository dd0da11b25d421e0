"""The time of day may be wrong, and jump: times on record are then odd, and nothing is decided by them."""

from __future__ import annotations

import datetime as real
import itertools
import json
import time
from functools import partial
from pathlib import Path

import pytest

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.monitor.record import read_run
from tests.program import at_step, losses, recorded, train

USERS = ("llmkit.monitor.events", "llmkit.monitor.goodput", "llmkit.file_lock", "llmkit.monitor.console")
"""Modules that ask for the time of day in a run."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Hours by which the time of day is wrong for this process."""
    wrong = [0.0]

    class Wrong(real.datetime):
        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> real.datetime:  # type: ignore[override]
            return real.datetime.now(tz) + real.timedelta(hours=wrong[0])

    for module in USERS:
        monkeypatch.setattr(f"{module}.datetime", Wrong)
    now = time.time
    monkeypatch.setattr("time.time", lambda: now() + 3600 * wrong[0])
    return wrong


@pytest.mark.drill(
    "D34", injection="starts at -1 h, +1 h and 0 h", expected="each goes on where the one before stopped"
)
@pytest.mark.drill(
    "D45",
    injection="the time of day jumps back and forth by an hour in each step",
    expected="the losses of an undisturbed run, saves in time, an account without negative times",
)
def test_a_clock_that_jumps_changes_times_alone(
    project: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["schedule.name=constant", "checkpoint.every_minutes=0.0001", "monitor.sample=null"]
    assert train("run.name=straight", *common) == 0
    jumps = itertools.cycle([-1.0, 0.0, 1.0])
    for step in range(1, 13):
        at_step(monkeypatch, step, partial(clock.__setitem__, 0, next(jumps)))
    for hours, last in ((-1.0, 4), (1.0, 8), (0.0, 12)):
        clock[0] = hours
        assert train(f"train.max_steps={last}", *common) == 0
    run = Path("runs/tiny")
    assert losses("tiny") == losses("straight") and open_checkpoint(run).step == 12
    times = [json.loads(line)["time"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert times != sorted(times)
    for event in recorded("save") + recorded("done"):
        account = event["account"]
        assert account["useful"] >= 0 and all(seconds >= 0 for seconds in account["lost"].values())
    assert read_run(run).state.name == "done"
