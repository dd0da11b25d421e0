"""Runs an iterator ahead in a thread.

    >>> ahead = Prefetch(iter("abc"), depth=2)
    >>> list(ahead)
    ['a', 'b', 'c']
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from llmkit.errors import RunFault

Item = TypeVar("Item")

POLL_SECONDS = 0.5
"""Seconds between two checks of `give_up` while waiting."""
CLOSE_SECONDS = 5.0
"""Seconds that `close` waits for the item at hand; a thread that hangs in reading a file is abandoned."""


class Interrupted(Exception):
    """The wait for an item was given up. why: the answer of `give_up`."""

    def __init__(self, why: int) -> None:
        super().__init__(why)
        self.why = why


class Prefetch(Generic[Item]):
    """Iterates over `items` while a thread makes the next `depth` of them.

    stall_seconds: a wait that is longer than this, while `heartbeat()` does not change, ends with a RunFault
    that names `describe()`; one in which `give_up()` is not 0, with Interrupted, after which the item may be
    asked for again.
    An exception of `items` is raised in the consumer, after what came before it. `close` stops the thread
    as soon as it has made the item at hand; it does not keep a process from ending.
    """

    def __init__(
        self,
        items: Iterator[Item],
        depth: int,
        stall_seconds: float | None = None,
        describe: Callable[[], str] = lambda: "the data",
        heartbeat: Callable[[], int] = lambda: 0,
        give_up: Callable[[], int] = lambda: 0,
    ) -> None:
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self._stall_seconds, self._describe, self._heartbeat = stall_seconds, describe, heartbeat
        self._give_up = give_up
        self._stop = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended is not None:
            raise self._ended
        item, ended = self._get()
        if ended is not None:
            self._ended = ended
            raise ended
        assert item is not None
        return item

    def _get(self) -> tuple[Item | None, BaseException | None]:
        before, since = self._heartbeat(), time.monotonic()
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=POLL_SECONDS)
            if why := self._give_up():
                raise Interrupted(why)
            if (heartbeat := self._heartbeat()) != before:
                before, since = heartbeat, time.monotonic()
            elif self._stall_seconds is not None and time.monotonic() - since >= self._stall_seconds:
                raise RunFault(
                    f"nothing came from {self._describe()} for {self._stall_seconds:g} seconds "
                    "(data.stall_seconds); is its storage or network up?"
                )

    @property
    def ready(self) -> int:
        """How many items can be had without waiting, and surely."""
        with self._queue.mutex:
            return sum(ended is None for _, ended in self._queue.queue)

    def close(self) -> None:
        """Stop the thread; iteration ends."""
        self._stop.set()
        self._ended = self._ended or StopIteration()
        # The thread may wait for room: with the queue empty it can put what it has, and sees the flag.
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(CLOSE_SECONDS)

    def _run(self, items: Iterator[Item]) -> None:
        ended: BaseException = StopIteration()
        try:
            for item in items:
                if self._stop.is_set():
                    return
                self._queue.put((item, None))
        except BaseException as error:  # raised again where the items are used
            ended = error
        if not self._stop.is_set():
            self._queue.put((None, ended))
