"""The account of a run's time over starts that end in every way, against values worked out by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from llmkit.monitor.goodput import LOST, Account, Ledger, carried_over

NAMES = ("start", "data", "compile", "step", "evaluate", "save", "other")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
Row = dict[str, Any]


def phases(**seconds: float) -> dict[str, float]:
    return {
        "start": 0.0,
        "data": 0.0,
        "compile": 0.0,
        "step": 0.0,
        "evaluate": 0.0,
        "save": 0.0,
        "other": 0.0,
    } | seconds


def event(name: str, at: float, account: Account | None, **fields: Any) -> Row:
    time = (NOON + timedelta(seconds=at)).isoformat(timespec="milliseconds")
    return {
        "time": time,
        "event": name,
        **fields,
        **({} if account is None else {"account": account.to_json()}),
    }


def row(step: int, account: Account) -> Row:
    return {"step": step, "loss": 1.0, **account.columns()}


def lost(account: Account) -> dict[str, float]:
    return {name: pytest.approx(seconds) for name, seconds in account.lost.items() if seconds}


STARTED = Account().with_phases(phases(start=10.0))
SAVED = Account().with_phases(phases(start=10.0, step=50.0, data=4.0, save=3.0))
ROW = Account().with_phases(phases(start=10.0, step=80.0, data=6.0, save=3.0, other=1.0))
KILLED = [event("start", 10.0, STARTED, step=0), event("save", 67.0, SAVED, step=5)]
"""A start at noon, saved after 5 steps of 10 s each, and killed some time after its row of step 8."""


def test_an_account_adds_up() -> None:
    assert (ROW.elapsed, ROW.goodput) == (100.0, 0.8)
    columns = ROW.columns()
    assert columns["elapsed_seconds"] == 100.0 and columns["goodput"] == 0.8
    assert {name: value for name, value in columns.items() if name.startswith("lost/") and value} == {
        "lost/start": 10.0, "lost/data": 6.0, "lost/save": 3.0, "lost/other": 1.0
    }  # fmt: skip
    assert {f"lost/{name}" for name in LOST} == columns.keys() - {"elapsed_seconds", "goodput"}
    assert Account.of_row(row(8, ROW)) == ROW
    assert Account().goodput is None


def test_a_killed_start_costs_the_steps_after_its_checkpoint_and_the_time_until_the_next_one() -> None:
    found = carried_over([row(4, SAVED), row(8, ROW)], KILLED, 5, NOON + timedelta(seconds=160.0))
    assert found.useful == pytest.approx(50.0)
    assert lost(found) == {
        "start": 10.0,
        "data": 6.0,
        "save": 3.0,
        "other": 1.0,
        "redone": 30.0,
        "down": 60.0,
    }
    assert found.elapsed == pytest.approx(160.0)


def test_a_clean_stop_loses_no_step() -> None:
    events = [*KILLED, event("save", 104.0, ROW, step=8), event("stop", 105.0, ROW, step=8)]
    found = carried_over([row(8, ROW)], events, 8, NOON + timedelta(seconds=130.0))
    assert (found.useful, found.lost["redone"], found.lost["down"]) == (80.0, 0.0, pytest.approx(30.0))


def test_a_run_without_a_checkpoint_starts_over() -> None:
    found = carried_over([row(8, ROW)], KILLED[:1], 0, NOON + timedelta(seconds=100.0))
    assert (found.useful, found.lost["redone"]) == (0.0, 80.0)


def test_a_save_that_never_came_on_record_is_known_by_the_row_before_it() -> None:
    rows = [row(4, SAVED), {"step": 6, "eval_loss": 1.0}, row(8, ROW)]
    assert carried_over(rows, KILLED[:1], 6, NOON + timedelta(seconds=100.0)).useful == pytest.approx(50.0)


def test_a_clock_that_was_set_back_makes_no_time_negative() -> None:
    found = carried_over([row(8, ROW)], KILLED, 5, NOON - timedelta(days=1))
    assert (found.lost["down"], found.elapsed) == (0.0, pytest.approx(100.0))


def test_the_time_after_a_run_was_done_is_not_lost() -> None:
    events = [*KILLED, event("save", 104.0, ROW, step=8), event("done", 104.0, ROW, step=8)]
    found = carried_over([row(8, ROW)], events, 8, NOON + timedelta(days=3))
    assert (found.lost["down"], found.elapsed) == (0.0, pytest.approx(100.0))


def test_starts_of_versions_without_an_account_are_left_out() -> None:
    old = [event("start", 0.0, None, step=0), event("save", 5.0, None, step=5)]
    assert carried_over([{"step": 5, "loss": 1.0}], old, 5, NOON + timedelta(days=1)) == Account()
    assert carried_over([], [], 0, NOON) == Account()


def test_damaged_records_do_not_keep_a_run_from_going_on() -> None:
    rows = [row(8, ROW), {"step": 9, "elapsed_seconds": "much"}, {"step": 9, "elapsed_seconds": [1.0]}]
    events = [
        *KILLED,
        {"event": "save", "step": 8, "account": 7},
        {"event": "save", "step": 8, "account": {"lost": 1}},
        {"event": "resume", "step": 5, "time": "noon", "account": {"useful": 1.0, "lost": {}}},
        {"event": "resume", "step": 5, "account": {"useful": 1.0, "lost": {}}},
    ]
    now = NOON + timedelta(seconds=160.0)
    assert carried_over(rows, events, 5, now) == carried_over([row(8, ROW)], KILLED, 5, now)
    nothing = Account.of_event({"account": {"useful": "x", "lost": {"start": None, "save": 1e400}}})
    assert nothing is not None and nothing.elapsed == 0.0


def test_three_starts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    first = carried_over([row(8, ROW)], KILLED, 5, NOON + timedelta(seconds=160.0))
    again = first.with_phases(phases(start=20.0))
    moved = first.with_phases(phases(start=20.0, step=30.0, evaluate=10.0))
    events = [*KILLED, event("resume", 180.0, again, step=5), event("fault", 220.0, moved, step=8)]
    now = NOON + timedelta(seconds=250.0)
    found = carried_over([row(4, SAVED)], events, 5, now)
    assert found.useful == pytest.approx(50.0)
    assert (found.lost["redone"], found.lost["down"]) == (pytest.approx(60.0), pytest.approx(60.0 + 30.0))
    assert found.elapsed == pytest.approx(250.0)


def test_a_ledger_goes_on_from_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    class Now(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return NOON + timedelta(seconds=170.0)

    monkeypatch.setattr("llmkit.monitor.goodput.datetime", Now)
    age = phases(start=10.0)
    ledger = Ledger(lambda: age)
    assert ledger.columns() == {**STARTED.columns(), "restarts": 0}
    ledger.go_on([row(8, ROW)], KILLED, 5)
    assert ledger.now().elapsed == pytest.approx(170.0)
    assert ledger.now().lost["down"] == pytest.approx(60.0), "up to the command, 10 s ago"
    age = phases(start=10.0, step=30.0)
    columns = ledger.columns()
    assert (columns["restarts"], columns["elapsed_seconds"], columns["goodput"]) == (1, 200.0, 0.4)


def test_the_account_in_a_line() -> None:
    assert ROW.describe() == (
        "80 % in steps that count, 10 % starting, 6 % waiting for data, 3 % saving, 1 % other"
    )
    assert Account().describe() == "0 % in steps that count"
