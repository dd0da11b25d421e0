"""Sinks of other people's code: fed in order, dropped where they raise or take nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import pytest

from llmkit.monitor import sink as module
from llmkit.monitor.sink import Sink, SinkThread
from tests.limits import HANG


class Rows(Sink):
    def __init__(self, bad: int = -1) -> None:
        self.rows: list[Any] = []
        self.bad, self.closed = bad, False

    def write(self, row: Mapping[str, Any]) -> None:
        if row["step"] == self.bad:
            raise ConnectionError("no route to host")
        self.rows.append(row)

    def close(self) -> None:
        self.closed = True


def test_rows_come_in_order_and_then_the_end() -> None:
    rows, notes = Rows(), []
    sink = SinkThread(rows, notes.append)
    for step in range(50):
        sink.write({"step": step})
    sink.close()
    assert [row["step"] for row in rows.rows] == list(range(50))
    assert rows.closed and not notes


def test_a_sink_that_would_end_the_process_is_dropped_with_a_note() -> None:
    class Exits(Rows):
        def write(self, row: Mapping[str, Any]) -> None:
            raise SystemExit(3)

    notes: list[str] = []
    sink = SinkThread(Exits(), notes.append)
    sink.write({"step": 1})
    sink.close()
    assert len(notes) == 1 and "SystemExit: 3" in notes[0]


def test_a_sink_that_raises_is_dropped_with_a_note() -> None:
    rows, notes = Rows(bad=2), []
    sink = SinkThread(rows, notes.append)
    for step in range(5):
        sink.write({"step": step})
    sink.close()
    sink.write({"step": 6})
    assert [row["step"] for row in rows.rows] == [0, 1]
    (note,) = notes
    assert note.startswith("the metric sink Rows is dropped: ConnectionError: no route to host")


def test_a_sink_that_takes_nothing_is_dropped_and_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING_ROWS", 3)
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.1)
    stuck, notes = threading.Event(), []

    class Stuck(Sink):
        def write(self, row: Mapping[str, Any]) -> None:
            stuck.wait(HANG)

    full = SinkThread(Stuck(), notes.append)
    for step in range(10):
        full.write({"step": step})
    full.close()
    late = SinkThread(Stuck(), notes.append)
    late.write({"step": 0})
    late.close()
    stuck.set()
    first, second = notes
    assert "3 rows wait for it, and it takes none" in first
    assert "has not taken its last rows within 0.1 seconds" in second
