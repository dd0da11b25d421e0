"""events.jsonl tells what happened to a run, its last line how it ended."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from llmkit.monitor.events import EventLog, event_time


def test_events_carry_the_time_in_utc_their_name_and_their_fields(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.record("start", step=0)
    log.record("save", step=100, path="checkpoints/step-00000100")
    first, second = log.rows()
    assert (first["event"], first["step"]) == ("start", 0)
    assert (second["event"], second["path"]) == ("save", "checkpoints/step-00000100")
    time = datetime.fromisoformat(second["time"])
    assert time.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - time) < timedelta(minutes=5)
    assert first["time"] <= second["time"]


def test_a_time_that_is_none_is_not_known_and_one_without_a_zone_is_in_utc() -> None:
    for damaged in ({}, {"time": None}, {"time": 7}, {"time": "noon"}):
        assert event_time(damaged) is None
    assert event_time({"time": "2026-11-28T12:00:00"}) == datetime(2026, 11, 28, 12, tzinfo=UTC)
    east = event_time({"time": "2026-11-28T14:00:00+02:00"})
    assert east == datetime(2026, 11, 28, 12, tzinfo=UTC)


def test_the_last_event_is_found_behind_a_torn_line_and_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    assert EventLog(path).rows() == []
    log = EventLog(path)
    log.record("start")
    log.record("stop", reason="SIGUSR1")
    log.close()
    with open(path, "a") as file:
        file.write('{"time": "20')
    assert EventLog(path).rows()[-1]["reason"] == "SIGUSR1"


def test_a_later_start_adds_to_the_same_file(tmp_path: Path) -> None:
    for start in range(3):
        EventLog(tmp_path / "events.jsonl").record("start", number=start)
    assert [row["number"] for row in EventLog(tmp_path / "events.jsonl").rows()] == [0, 1, 2]


def test_a_place_that_cannot_be_written_is_told_not_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = EventLog(tmp_path / "file" / "events.jsonl")
    log.record("start")
    assert log.fault is not None and "events.jsonl" in log.fault
