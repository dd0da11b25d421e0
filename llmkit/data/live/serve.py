"""Serves the rows of many lanes to one consumer: made in its own thread, or ahead of it by processes."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import JsonValue

from llmkit.data.live.row import Cursor, Row
from llmkit.data.live.source import LiveSource
from llmkit.data.live.worker import LaneKey, LaneMaker, Worker

MOST_WORKERS = 4
"""Processes, at most, where their number is `auto`: a core tokenizes what dozens of GPUs train on."""


def workers_of(setting: int | Literal["auto"], ranks_here: int = 1) -> int:
    """Processes that data.workers stands for. ranks_here: ranks that share the cores of this machine."""
    if setting != "auto":
        return setting
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores // (2 * ranks_here))


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
        self._lock = threading.Lock()
        keys = list(lanes)
        self._makers: list[LaneMaker | Worker] = []
        atexit.register(self.close)
        try:
            for number in range(min(workers, len(keys))):
                part = {key: lanes[key] for key in keys[number::workers]}
                self._makers.append(Worker(sources, part, stall_seconds))
        except BaseException:
            self.close()
            raise
        if not self._makers:
            self._makers.append(LaneMaker(sources, lanes))
        self._maker_of = {key: self._makers[i % len(self._makers)] for i, key in enumerate(keys)}

    def take(self, place: int, lane: int, wanted: Sequence[bool]) -> list[Row]:
        """The next rows of a lane, one for each of `wanted`; those not wanted come without tokens.

        Raises UserError or RunFault, which name the source, where a row cannot be had; so does every later
        call for that lane.
        """
        maker, rows = self._maker_of[place, lane], []
        with self._lock:
            for each in wanted:
                answer = maker.answer((place, lane), each)
                if not isinstance(answer, Row):
                    raise answer
                rows.append(answer)
        return rows

    def skip(self, place: int, lane: int, count: int) -> list[Row]:
        """Pass over the next rows of a lane: they come without tokens, but tell where the lane stands."""
        return self.take(place, lane, [False] * count)

    def close(self) -> None:
        """End the processes and close the files; a `take` that waits in another thread raises RunFault."""
        atexit.unregister(self.close)
        for maker in self._makers:
            maker.give_up()
        with self._lock:
            for maker in self._makers:
                maker.close()
