"""Where the rows of a run go: the interface of sinks, and the thread that feeds one of somebody else."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from llmkit.config.mistakes import printable

WAITING_ROWS = 1000
"""Rows that wait for a sink at most; one that lets more wait is dropped."""
CLOSE_SECONDS = 5.0
"""How long the end of a run waits for a sink."""

Take = Callable[[Mapping[str, Any]], None]
"""A method of a sink that takes a row, an item or an event."""


class Sink:
    """Base class of sinks: they receive every row of metrics.jsonl, on rank 0, and what they ask for of
    media.jsonl and events.jsonl.

    All comes from a thread of the sink's own, in order. A sink that raises, or takes nothing, is dropped
    with a note; training goes on.
    """

    name: str = ""
    """Names the sink in messages; "" = the class's name."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Takes a row: `step` and numbers by name; None stands for a number that is not finite."""
        raise NotImplementedError

    def media(self, item: Mapping[str, Any]) -> None:
        """Takes a histogram, a table or an image: see `llmkit.monitor.media`. By default nothing happens."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Takes an event: `time`, `event` and its fields. By default nothing happens."""

    def close(self) -> None:
        """After the last row."""


class SinkThread(Sink):
    """Feeds a sink in a thread of its own, so that it can neither stop nor delay the run.

    note: called, in whichever thread notices it, with why the sink was dropped.
    """

    def __init__(self, sink: Sink, note: Callable[[str], None]) -> None:
        self._sink, self._note = sink, note
        self._name = sink.name or type(sink).__qualname__
        self._rows: queue.Queue[tuple[Take, dict[str, Any]] | None] = queue.Queue(WAITING_ROWS)
        self._dropped = False
        self._thread = threading.Thread(target=self._run, name=f"sink {self._name}", daemon=True)
        self._thread.start()

    def write(self, row: Mapping[str, Any]) -> None:
        """Returns at once."""
        self._put(self._sink.write, row)

    def media(self, item: Mapping[str, Any]) -> None:
        """Returns at once."""
        self._put(self._sink.media, item)

    def event(self, event: Mapping[str, Any]) -> None:
        """Returns at once."""
        self._put(self._sink.event, event)

    def _put(self, take: Take, row: Mapping[str, Any]) -> None:
        if not self._dropped:
            try:
                self._rows.put_nowait((take, dict(row)))
            except queue.Full:
                self._drop(f"{WAITING_ROWS} rows wait for it, and it takes none")

    def close(self) -> None:
        """Waits CLOSE_SECONDS at most until the sink has taken every row and is closed."""
        end = time.monotonic() + CLOSE_SECONDS
        while not self._dropped:
            try:
                self._rows.put(None, timeout=max(0.0, end - time.monotonic()))
                break
            except queue.Full:
                self._drop(f"{WAITING_ROWS} rows wait for it, and it takes none")
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive() and not self._dropped:
            self._drop(f"it has not taken its last rows within {CLOSE_SECONDS:g} seconds")

    def _drop(self, reason: str) -> None:
        if not self._dropped:
            self._dropped = True
            self._note(f"the metric sink {self._name} is dropped: {reason}; metrics.jsonl has every row")

    def _run(self) -> None:
        try:
            while (given := self._rows.get()) is not None:
                if self._dropped:
                    return
                take, row = given
                take(row)
            self._sink.close()
        except BaseException as error:  # SystemExit, too, would end the thread unnoticed
            self._drop(f"{type(error).__name__}: {printable(str(error))}")
