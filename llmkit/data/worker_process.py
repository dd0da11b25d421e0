"""Worker processes: they share nothing with this one but a pipe, and end with it in any case."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from llmkit.stopping import signals_blocked


class WorkerProcess:
    """A process that runs `work(pipe)` with the other end of `pipe`.

    It ignores the signals that a scheduler sends to all processes (`llmkit.stopping`): this process stops it.
    `work` returns, or raises EOFError or OSError, when the pipe is closed. Whoever starts one sees to
    `stop_all` before: at its exit this process waits for all of them.
    """

    def __init__(self, work: Callable[[Connection], None], name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, self._theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(work, self._theirs), name=name, daemon=True)

    def start(self) -> None:
        """Start it, without waiting until it runs."""
        resource_tracker.ensure_running()  # starting it, as spawning would, unblocks signals
        with _without_main_script(), signals_blocked():
            self._process.start()
        self._theirs.close()

    def send(self, thing: Any) -> None:
        """Send something that may be large; waits until it is taken.

        Not as an argument: `start` would wait for ever to hand it over to a process that died at once.
        """
        with contextlib.suppress(OSError):  # that it is gone is noticed where it should answer
            self.pipe.send(thing)

    @property
    def pid(self) -> int | None:
        """Its number; None before it is started."""
        return self._process.pid

    def exit_code(self, seconds: float) -> int | None:
        """How it ended, waiting for that; None if it still runs."""
        self._process.join(seconds)
        return self._process.exitcode

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()


def stop_all(workers: Sequence[WorkerProcess], seconds: float) -> None:
    """Stop all of them; what still runs after so long is killed."""
    for worker in workers:
        worker.pipe.close()
    until = time.monotonic() + seconds
    started = [worker for worker in workers if worker.pid is not None]
    for worker in [one for one in started if one.exit_code(max(0.0, until - time.monotonic())) is None]:
        worker.kill()


@contextlib.contextmanager
def _without_main_script() -> Iterator[None]:
    """A process started in here does not run the main script once more.

    It needs nothing of it, and the script may import torch, or do all its work, at once.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _run(work: Callable[[Connection], None], pipe: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the pipe was closed
        work(pipe)
    os._exit(0)  # nothing is left to be saved; threads of libraries are not waited for


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    while os.getppid() == parent.pid and not wait([parent.sentinel], timeout=5.0):
        pass
    os._exit(1)
