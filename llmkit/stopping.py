"""Requests to stop that reach this process from outside: signals, and the end of the launcher above it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
"""What batch systems, launchers and terminals send to every process of a job that is to end."""
LAUNCHER_GONE = "its launcher has ended"


class Stopped(BaseException):
    """Work was given up because this process, or another of its run, was asked to stop.

    Not an Exception: what handles errors must not take it for one. Its text is the reason.
    """


class Listener:
    """From `listen` until its end, a signal sets a flag, and interrupts nothing but what may be interrupted.

    That is the work inside `interruptible()` while `giving_up()` holds, as in the set-up of a run: there
    the first signal raises Stopped. A second Ctrl-C gives SIGINT its usual meaning back, so that a third
    one ends the process at once; other repeated signals change nothing. SIGHUP stays ignored where it is
    (nohup).
    environment: tells whether a launcher started this process, whose end is a request to stop, too.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in environment else None
        self._signal: signal.Signals | None = None
        self._giving_up = self._raises = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """From now on signals set the flag. Not before this process has joined its world: until then
        it may wait for others in code that no flag can end."""
        global _listener
        heard = [number for number in SIGNALS if not _ignored_on_purpose(number)]
        self._before = {number: signal.signal(number, self._receive) for number in heard}
        _listener = self

    @property
    def reason(self) -> str:
        """Why to stop: the name of the first signal, or LAUNCHER_GONE; empty = no reason."""
        if self._signal is not None:
            return self._signal.name
        return LAUNCHER_GONE if self._launcher not in (None, os.getppid()) else ""

    @contextmanager
    def giving_up(self, everywhere: bool) -> Iterator[None]:
        """In here, work that is `interruptible` is given up when a stop is asked for.

        everywhere: all of it is, which only a process that no other waits for may say.
        """
        self._giving_up = True
        try:
            with interruptible() if everywhere else _nothing():
                yield
        finally:
            self._giving_up = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self._signal is None
        if self._signal is None:
            self._signal = signal.Signals(number)
        elif number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if first and self._raises:
            raise Stopped(self.reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _listener
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _listener = None


_listener: Listener | None = None
"""Signals belong to the process, and so does who listens to them."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Work that may be given up, if a Listener allows it now: on a stop, Stopped is raised."""
    listener = _listener
    if listener is None or not listener._giving_up:
        yield
        return
    before, listener._raises = listener._raises, True
    try:
        _check(listener)
        yield
        _check(listener)  # also what no signal tells, and one that came where nothing could be raised
    finally:
        listener._raises = before


@contextmanager
def signals_blocked() -> Iterator[None]:
    """A process started in here, and its children, never sees SIGNALS; ours are only delayed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _check(listener: Listener) -> None:
    if reason := listener.reason:
        raise Stopped(reason)


def _ignored_on_purpose(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def _nothing() -> Iterator[None]:
    yield
