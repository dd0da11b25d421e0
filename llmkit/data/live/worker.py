"""Makes the rows of lanes: here, or in a process of its own that runs ahead.

A worker process makes rows in the order in which it is asked for them, and it is asked for a lane's next row
whenever one of that lane is taken. So a few rows of each lane are under way at all times, and never more.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
import traceback
from array import array
from collections import deque
from collections.abc import Mapping
from multiprocessing.connection import Connection

from pydantic import JsonValue

from llmkit.cores import raise_open_files
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Cursor, Lane, Row
from llmkit.data.live.wire import Answer, pack, unpack
from llmkit.data.processes import Helper
from llmkit.errors import RunFault, UserError

AHEAD_ROWS, AHEAD_TOKENS = 4, 1 << 13
"""Rows of each lane that are made ahead: so many, or so many tokens where rows are short."""
POLL_SECONDS = 0.2
DEATH_SECONDS = 30.0
"""Time for a process whose pipe broke to be gone."""
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
            row = next(self._lanes[key])
            return row if wanted else row._replace(tokens=row.tokens[:0], targets=None)
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


class Worker(Helper):
    """A process that makes the rows of some lanes, as its consumer sees it.

    First `start` it, then `begin`.
    """

    def __init__(
        self,
        sources: Mapping[int, LiveSource],
        cursors: Mapping[LaneKey, JsonValue],
        stall_seconds: float,
        closing: threading.Event,
    ) -> None:
        super().__init__(_work, "tokenize")
        self._sources, self._cursors, self._stall_seconds = sources, dict(cursors), stall_seconds
        self._keys = list(cursors)
        self._number = {key: number for number, key in enumerate(self._keys)}
        self._arrived: dict[LaneKey, deque[bytes]] = {key: deque() for key in self._keys}
        self._last: dict[LaneKey, bytes] = {}  # that arrived
        self._asked: deque[LaneKey] = deque()  # and not answered; the process works on the first
        self._closing = closing

    def begin(self) -> None:
        """Tell it what it is to do; waits until it is up."""
        used = {place: self._sources[place] for place in sorted({place for place, _ in self._keys})}
        self.give((used, self._cursors))
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

    def _ask(self, keys: list[LaneKey]) -> None:
        self._asked.extend(keys)
        with contextlib.suppress(OSError):  # that it is gone is noticed where its rows should come
            self.pipe.send_bytes(array("I", [self._number[key] for key in keys]).tobytes())

    def _receive_until(self, arrived: deque[bytes]) -> None:
        waits_since = time.monotonic()
        while not arrived:
            if self._closing.is_set():
                raise closed()
            if self.pipe.poll(POLL_SECONDS):
                try:
                    content = self.pipe.recv_bytes()
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
        return RunFault(
            f"{self.activity}: the process that tokenizes it ended with exit code "
            f"{self.exit_code(DEATH_SECONDS)} "
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
        return source.reading(lane, source.unit_order(lane, at.epoch, at.split)[at.split])


def _work(pipe: Connection) -> None:
    """A worker's life: demands come, rows go, until the consumer closes the pipe."""
    raise_open_files()  # each lane has a file open
    sources, cursors = pipe.recv()
    maker, keys = LaneMaker(sources, cursors), list(cursors)
    ready: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_send, args=(ready, pipe), daemon=True).start()
    asked: deque[int] = deque()
    try:
        while True:
            while not asked or pipe.poll():
                asked.extend(array("I", pipe.recv_bytes()))
            ready.put(_make(maker, keys[asked.popleft()]))
    finally:
        maker.close()


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
