"""Serves the rows of many lanes to one consumer: made in its own thread, or ahead of it by processes."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from llmkit.data.live.source import LiveSource
from llmkit.data.live.stream import Cursor, Row
from llmkit.data.live.worker import LaneKey, LaneMaker, Worker, closed
from llmkit.data.processes import end

CLOSE_SECONDS = 2.0
"""What still hangs in reading a file after so long is left to hang, or killed if it is a process."""


class LaneServer:
    """The next rows of each lane, in order; they are the same for any number of workers.

    sources: by their places, which stand for them in all calls. lanes: (place, lane) of all lanes that will
    be asked for, in the order in which they will be first, each with the cursor to go on from, None = from
    the beginning. workers: processes; 0 = the thread that takes the rows makes them, and only what reads
    the files has a limit of time. stall_seconds: without a row for so long, a process is given up.
    Raises UserError for a cursor that is none.
    """

    def __init__(
        self,
        sources: Mapping[int, LiveSource],
        lanes: Mapping[LaneKey, JsonValue],
        workers: int,
        stall_seconds: float,
    ) -> None:
        for (place, lane), cursor in lanes.items():
            if cursor is not None:
                Cursor.of(cursor, f"source {sources[place].name}, lane {lane}")
        self._lock, self._closing = threading.Lock(), threading.Event()
        keys, workers = list(lanes), min(workers, len(lanes))
        parts = [{key: lanes[key] for key in keys[number::workers]} for number in range(workers)]
        self._workers = [Worker(sources, part, stall_seconds, self._closing) for part in parts]
        self._alone = LaneMaker(sources, lanes)
        self._makers: list[LaneMaker | Worker] = [*self._workers] or [self._alone]
        atexit.register(self.close)
        try:
            for worker in self._workers:
                worker.start()
            for worker in self._workers:  # the others come up meanwhile
                worker.begin()
        except BaseException:
            self.close()
            raise
        self._asked = self._makers[0]
        self._maker_of = {key: self._makers[i % len(self._makers)] for i, key in enumerate(keys)}

    def take(self, place: int, lane: int, wanted: Sequence[bool]) -> list[Row]:
        """The next rows of a lane, one for each of `wanted`; those not wanted come without tokens.

        Raises UserError or RunFault, which name the source, where a row cannot be had; so does every later
        call for that lane.
        """
        maker, rows = self._maker_of[place, lane], []
        with self._lock:
            self._asked = maker
            for each in wanted:
                if self._closing.is_set():
                    raise closed()
                answer = maker.answer((place, lane), each)
                if not isinstance(answer, Row):
                    raise answer
                rows.append(answer)
        return rows

    @property
    def activity(self) -> str:
        """What is being read for the `take` at hand, or was last, for messages: source, lane and file."""
        return self._asked.activity

    def close(self) -> None:
        """End the processes and close the files; a `take` that waits in another thread raises RunFault."""
        self._closing.set()
        idle = self._lock.acquire(timeout=CLOSE_SECONDS)
        try:
            end(self._workers, CLOSE_SECONDS)
            if idle:
                self._alone.close()
        finally:
            if idle:
                self._lock.release()
        atexit.unregister(self.close)
