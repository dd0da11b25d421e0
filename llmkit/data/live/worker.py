"""Makes the rows of lanes: here, or in a process of its own that runs ahead.

A worker process makes rows in the order in which it is asked for them, and it is asked for a lane's next row
whenever one of that lane is taken. So a few rows of each lane are under way at all times, and never more.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from array import array
from collections import deque
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType

from pydantic import JsonValue

from llmkit.data.live.lane import Lane
from llmkit.data.live.row import Cursor, Row
from llmkit.data.live.source import LiveSource
from llmkit.data.live.wire import Answer, pack, unpack
from llmkit.errors import RunFault, UserError

AHEAD_ROWS, AHEAD_TOKENS = 4, 1 << 13
"""Rows of each lane that are made ahead: so many, or so many tokens where rows are short."""
CLOSE_SECONDS = 2.0
"""A process that has not ended by itself after so long is killed."""
POLL_SECONDS = 0.2
JOB_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
"""What a whole job is told with: the training process decides what follows, and needs rows until then."""

LaneKey = tuple[int, int]
"""Place of the source, number of the lane."""


def closed() -> RunFault:
    """What who waits for a row gets when the rows are closed."""
    return RunFault("the data is closed")


class LaneMaker:
    """Makes the rows of lanes in the calling thread."""

    def __init__(self, sources: Mapping[int, LiveSource], cursors: Mapping[LaneKey, JsonValue]) -> None:
        self._sources, self._cursors = sources, cursors
        self._asked: LaneKey = next(iter(cursors), (0, 0))
        self._lanes: dict[LaneKey, Lane] = {}
        self._failed: dict[LaneKey, Exception] = {}

    def answer(self, key: LaneKey, wanted: bool = True) -> Answer:
        """The next row of a lane, or the error in its place; from then on always that error."""
        self._asked = key
        if key in self._failed:
            return self._failed[key]
        try:
            if key not in self._lanes:
                place, lane = key
                self._lanes[key] = Lane(self._sources[place], lane, self._cursors[key])
            return self._lanes[key].next_row(wanted)
        except (UserError, RunFault) as error:
            self._failed[key] = error
            return error

    @property
    def activity(self) -> str:
        """Source, lane and file of the row that is being made, or was last."""
        lane = self._lanes.get(self._asked)
        return "the live sources" if lane is None else lane.activity

    def close(self) -> None:
        """Close the files."""
        for lane in self._lanes.values():
            lane.close()
        self._lanes = {}


class Worker:
    """A process that makes the rows of some lanes, as its consumer sees it."""

    def __init__(
        self,
        sources: Mapping[int, LiveSource],
        cursors: Mapping[LaneKey, JsonValue],
        stall_seconds: float,
        closing: threading.Event,
    ) -> None:
        self._sources, self._cursors, self._stall_seconds = sources, dict(cursors), stall_seconds
        self._keys = list(cursors)
        self._number = {key: number for number, key in enumerate(self._keys)}
        self._arrived: dict[LaneKey, deque[bytes]] = {key: deque() for key in self._keys}
        self._last: dict[LaneKey, bytes] = {}  # that arrived
        self._asked: deque[LaneKey] = deque()  # and not answered; the process works on the first
        self._closing = closing
        context = multiprocessing.get_context("spawn")
        self._rows, their_rows = context.Pipe(duplex=False)
        their_demand, self._demand = context.Pipe(duplex=False)
        used = {place: sources[place] for place in sorted({place for place, _ in self._keys})}
        self._process = context.Process(
            target=_work, args=(used, self._cursors, their_demand, their_rows), name="tokenize", daemon=True
        )
        with _job_signals_blocked():
            self._process.start()
        their_rows.close()
        their_demand.close()
        longest = max(source.sequence_length for source in used.values())
        self._ask(self._keys * max(AHEAD_ROWS, AHEAD_TOKENS // longest))

    def answer(self, key: LaneKey, wanted: bool = True) -> Answer:
        """The next row of a lane, waiting for it, or the error in its place.

        Raises RunFault if the process dies, or if nothing comes for too long.
        """
        arrived = self._arrived[key]
        if not arrived:
            self._receive_until(arrived)
        content = arrived.popleft()
        self._ask([key])
        return unpack(content, wanted)

    def close(self) -> None:
        """End the process."""
        self._demand.close()
        self._rows.close()
        self._process.join(CLOSE_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, keys: list[LaneKey]) -> None:
        self._asked.extend(keys)
        with contextlib.suppress(OSError):  # that it is gone is noticed where its rows should come
            self._demand.send_bytes(array("I", [self._number[key] for key in keys]).tobytes())

    def _receive_until(self, arrived: deque[bytes]) -> None:
        waits_since = time.monotonic()
        while not arrived:
            if self._closing.is_set():
                raise closed()
            if self._rows.poll(POLL_SECONDS):
                try:
                    content = self._rows.recv_bytes()
                except (EOFError, OSError):
                    raise self._died() from None
                key = self._asked.popleft()
                self._arrived[key].append(content)
                self._last[key] = content
                waits_since = time.monotonic()
            elif time.monotonic() - waits_since > self._stall_seconds:
                raise RunFault(
                    f"{self.activity}: no row came for {self._stall_seconds:g} s (data.stall_seconds); the "
                    "newest checkpoint goes on from there when its files can be read again"
                )

    def _died(self) -> RunFault:
        self._process.join(CLOSE_SECONDS)
        return RunFault(
            f"{self.activity}: the process that tokenizes it ended with exit code {self._process.exitcode} "
            "(-9 is most often a lack of memory); the newest checkpoint goes on from there"
        )

    @property
    def activity(self) -> str:
        """Source, lane and file of the row that is being made."""
        if not self._asked:
            return "the live sources"
        place, lane = key = self._asked[0]
        source, cursor = self._sources[place], self._cursors[key]
        at = Cursor() if cursor is None else Cursor.of(cursor, source.name)
        if key in self._last:
            answer = unpack(self._last[key], wanted=False)
            at = Cursor(*answer.cursor) if isinstance(answer, Row) else at
        return source.reading(lane, source.unit_order(lane, at.epoch)[at.place])


@contextlib.contextmanager
def without_main_script() -> Iterator[None]:
    """Processes that are started in here do not run the main script once more.

    They need nothing of it, and it may import torch, or do all its work, at once.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextlib.contextmanager
def _job_signals_blocked() -> Iterator[None]:
    """A process started in here never sees JOB_SIGNALS; ours are only delayed."""
    resource_tracker.ensure_running()  # starting it, as spawning would, unblocks signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    sources: dict[int, LiveSource],
    cursors: dict[LaneKey, JsonValue],
    demand: Connection,
    rows: Connection,
) -> None:
    """A worker's life: demands come, rows go, until the consumer closes the pipe or dies."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # each lane has a file open
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    maker = LaneMaker(sources, cursors)
    keys = list(cursors)
    ready: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_send, args=(ready, rows), daemon=True).start()
    asked: deque[int] = deque()
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not asked or demand.poll():
                asked.extend(array("I", demand.recv_bytes()))
            ready.put(_make(maker, keys[asked.popleft()]))
    maker.close()
    os._exit(0)  # nothing is left to be saved; threads of libraries are not waited for


def _make(maker: LaneMaker, key: LaneKey) -> bytes:
    try:
        return pack(maker.answer(key))
    except Exception:  # a fault of this program: where the row is taken it shall be seen
        return pack(RuntimeError(f"in a process that tokenizes:\n{traceback.format_exc()}"))


def _send(ready: queue.SimpleQueue[bytes], rows: Connection) -> None:
    """Sends rows while others are made; the pipe has room for a few only."""
    with contextlib.suppress(OSError):
        while True:
            rows.send_bytes(ready.get())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid and not wait([parent.sentinel], timeout=5.0):
        pass
    os._exit(1)
