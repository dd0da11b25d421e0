"""Runs an iterator ahead in a thread."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetch(Generic[Item]):
    """Iterates over `items` while a thread makes the next `depth` of them.

    An exception of `items` is raised in the consumer, after what came before it. `close` stops the thread
    as soon as it has made the item at hand; it does not keep a process from ending.
    """

    def __init__(self, items: Iterator[Item], depth: int) -> None:
        self._queue: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(items,), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        if self._ended is not None:
            raise self._ended
        item, ended = self._queue.get()
        if ended is not None:
            self._ended = ended
            raise ended
        assert item is not None
        return item

    def close(self) -> None:
        """Stop the thread; iteration ends."""
        self._stop.set()
        self._ended = self._ended or StopIteration()
        # The thread may wait for room: with the queue empty it can put what it has, and sees the flag.
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join()

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
