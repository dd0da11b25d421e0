"""Makes the rows of live sources in the order of a schedule: where they are taken, or ahead, by processes.

The schedule is a pure function, so nobody is asked for a row: each process goes through all of it, makes the
rows of its own lanes, and sends them through its pipe, which holds so many and no more. With 2 processes:

    schedule     lane 0   lane 1   lane 2   lane 0   lane 1   ...
    process 0    row      .        row      row      .        -> pipe 0
    process 1    .        row      .        .        row      -> pipe 1
    consumer     pipe 0   pipe 1   pipe 0   pipe 0   pipe 1
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from pydantic import JsonValue

from llmkit.cores import raise_open_files
from llmkit.data.live.schedule import LaneKey
from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Cursor, Lane, Row
from llmkit.data.worker_process import WorkerProcess, stop_all
from llmkit.errors import RunFault, UserError

AHEAD_ROWS, AHEAD_TOKENS = 4, 1 << 18
"""Rows that a process makes ahead: so many, or so many tokens where rows are short."""
POLL_SECONDS = 0.2
DEATH_SECONDS = 30.0
"""Time for a process whose pipe broke to be gone."""
CLOSE_SECONDS = 2.0
"""Time to end at `close`; then a process is killed, a thread that hangs in reading a file abandoned."""


class LiveRows:
    """The rows of many lanes, in the order of `schedule`; the same for any number of workers.

    sources: by index. cursors: of all lanes in the schedule, None = from the beginning, in the order in which
    they are first taken. workers: processes; 0 = the thread that takes the rows makes them, and only what
    reads the files has a limit of time. stall_seconds: without a row for so long, a process is given up.
    Raises UserError for a cursor that is none.
    """

    def __init__(
        self,
        sources: Mapping[int, LiveSource],
        cursors: Mapping[LaneKey, JsonValue],
        schedule: Iterable[LaneKey],
        workers: int,
        stall_seconds: float,
    ) -> None:
        self._sources, self._stall_seconds = sources, stall_seconds
        self._cursors = {  # after the rows that were taken
            key: _start_of(sources[key[0]], key[1], cursor) for key, cursor in cursors.items()
        }
        self._lock, self._closing = threading.Lock(), threading.Event()
        self._failed: Exception | None = None
        keys, count = list(cursors), min(workers, len(cursors))
        self._key = next(iter(keys), None)  # of the row that is awaited, or was last
        self._lanes: dict[LaneKey, Lane] = {}
        self._rows = make_rows(sources, cursors, schedule, self._lanes)
        self._workers = [Worker() for _ in range(count)]
        self._worker_of = {key: self._workers[k % count] for k, key in enumerate(keys) if count}
        atexit.register(self.close)
        try:
            for worker in self._workers:
                worker.start()
            for k, worker in enumerate(self._workers):  # the others come up meanwhile
                worker.begin(sources, {key: cursors[key] for key in keys[k::count]}, schedule)
        except BaseException:
            self.close()
            raise

    def take(self, source: int, lane: int) -> Row:
        """The next row of the schedule, which is one of this lane.

        Raises UserError or RunFault, which name the source, where it cannot be had; so does every later call.
        """
        with self._lock:
            if self._closing.is_set():
                raise _closed()
            if self._failed is not None:
                raise self._failed
            self._key = key = source, lane
            try:
                made, row = self._receive(self._worker_of[key]) if self._workers else next(self._rows)
            except Exception as error:
                self._failed = error
                raise
            assert made == key, (made, key)
            self._cursors[key] = Cursor(*row.cursor)
            return row

    @property
    def activity(self) -> str:
        """What is being read for the `take` at hand, or was last, for messages: source, lane and file."""
        if self._key is None:
            return "the live sources"
        if self._key in self._lanes:
            return self._lanes[self._key].activity
        (index, lane), cursor = self._key, self._cursors[self._key]
        order = self._sources[index].split_order(lane, cursor.epoch, cursor.split)
        return self._sources[index].reading(lane, order[cursor.split])

    def close(self) -> None:
        """End the processes and close the files; a `take` that waits in another thread raises RunFault."""
        self._closing.set()
        is_idle = self._lock.acquire(timeout=CLOSE_SECONDS)
        try:
            stop_all(self._workers, CLOSE_SECONDS)
            if is_idle:
                for lane in self._lanes.values():
                    lane.close()
        finally:
            if is_idle:
                self._lock.release()
        atexit.unregister(self.close)

    def _receive(self, worker: Worker) -> tuple[LaneKey, Row]:
        try:
            self._await(worker)
            made: tuple[LaneKey, Row] | Exception = worker.pipe.recv()
        except (EOFError, OSError, TypeError) as error:  # TypeError: of a pipe that is closed meanwhile
            if self._closing.is_set():
                raise _closed() from None
            if isinstance(error, TypeError):
                raise
            raise RunFault(
                f"{self.activity}: the process that tokenizes it ended with exit code "
                f"{worker.exit_code(DEATH_SECONDS)} "
                "(-9 is most often a lack of memory); the newest checkpoint goes on from there"
            ) from None
        if isinstance(made, Exception):
            raise made
        return made

    def _await(self, worker: Worker) -> None:
        """Waits until a process has sent something, or has ended. Raises RunFault where nothing comes."""
        since = time.monotonic()
        while not worker.pipe.poll(POLL_SECONDS):
            if self._closing.is_set():
                raise _closed()
            if time.monotonic() - since > self._stall_seconds:
                raise RunFault(
                    f"{self.activity}: no row came for {self._stall_seconds:g} s (data.stall_seconds); the "
                    "newest checkpoint goes on from there when its files can be read again"
                )


def make_rows(
    sources: Mapping[int, LiveSource],
    cursors: Mapping[LaneKey, JsonValue],
    schedule: Iterable[LaneKey],
    lanes: dict[LaneKey, Lane],
) -> Iterator[tuple[LaneKey, Row]]:
    """The rows of the lanes that have cursors, in the order of the schedule; puts the lanes into `lanes`."""
    for key in schedule:
        if key in cursors:
            if key not in lanes:
                lanes[key] = Lane(sources[key[0]], key[1], cursors[key])
            yield key, next(lanes[key])


class Worker(WorkerProcess):
    """A process that makes the rows of some lanes ahead. First `start` it, then `begin`."""

    def __init__(self) -> None:
        super().__init__(_work, "tokenize")

    def begin(
        self,
        sources: Mapping[int, LiveSource],
        cursors: Mapping[LaneKey, JsonValue],
        schedule: Iterable[LaneKey],
    ) -> None:
        """Give it the lanes to make; waits until it is up."""
        own = {index: sources[index] for index, _ in cursors}
        longest = max(source.sequence_length for source in own.values())
        self.send((own, cursors, schedule, max(AHEAD_ROWS, AHEAD_TOKENS // longest)))


def _work(pipe: Connection) -> None:
    """A worker's life: makes rows, while a thread sends others, until the consumer closes the pipe."""
    raise_open_files()  # each lane has a file open
    sources, cursors, schedule, ahead = pipe.recv()
    made: queue.Queue[Any] = queue.Queue(ahead)
    threading.Thread(target=_send, args=(made, pipe), daemon=True).start()
    _fill(made, make_rows(sources, cursors, schedule, {}))
    pipe.recv()


def _fill(made: queue.Queue[Any], rows: Iterator[Any]) -> None:
    """Puts the rows into the queue, then the error that ended them, if there is one."""
    try:
        for row in rows:
            made.put(row)
    except (UserError, RunFault) as error:
        made.put(error)
    except Exception:  # a fault of this program: where the row is taken it shall be seen
        made.put(RuntimeError(f"in a process that tokenizes:\n{traceback.format_exc()}"))


def _send(made: queue.Queue[Any], pipe: Connection) -> None:
    try:
        while True:
            pipe.send(made.get())
    except OSError:  # the consumer has closed it, and this process may wait for room in the queue
        os._exit(0)


def _start_of(source: LiveSource, lane: int, cursor: JsonValue) -> Cursor:
    return Cursor() if cursor is None else Cursor.of(cursor, f"source {source.name}, lane {lane}")


def _closed() -> RunFault:
    return RunFault("the data is closed")
