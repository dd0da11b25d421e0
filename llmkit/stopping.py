"""Requests to stop that reach this process from outside: signals, and the end of the launcher above it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

Result = TypeVar("Result")

SIGNALS = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU,
)  # fmt: skip
"""What batch systems, launchers and terminals send to every process of a job that is to end."""
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_BACKEND")
"""Variables by which torchrun and accelerate are known, which stay as long as their processes run."""
LAUNCHER_GONE = "its launcher has ended"
STOPPED = 75
"""Exit code of a run that was asked to stop: it is saved, and the same command goes on with it."""
WATCH_SECONDS = 1.0
"""How often a reason to stop is looked for that no signal tells."""


class Stopped(BaseException):
    """Work was given up because this process, or another of its run, was asked to stop.

    Not an Exception: what handles errors must not take it for one. Its text is the reason.
    """


class Listener:
    """From `listen` until its end, a signal sets a flag, and interrupts nothing but what may be given up.

    From `give_up` until `hold`, as in the set-up of a run, the first request to stop raises Stopped in
    `interruptible` work. A second Ctrl-C gives SIGINT its usual meaning back, so that a third one ends the
    process at once; other repeated signals change nothing. SIGHUP stays ignored where it is (nohup).
    environment: tells whether a launcher started this process, whose end is a request to stop, too.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        launched = any(name in environment for name in LAUNCHERS)
        self._launcher = os.getppid() if launched else None
        self._signal: signal.Signals | None = None
        self._other = ""
        self._giving_up = self._raises = False
        self._held = threading.Event()
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

    def give_up(self, everywhere: bool, other: Callable[[], str] = lambda: "") -> None:
        """From now on `interruptible` work is given up when a stop is asked for.

        everywhere: all work is, which only a process that no other waits for may say. other: a reason
        that no signal tells, or nothing; a thread asks for it every WATCH_SECONDS.
        """
        self._giving_up, self._raises = True, everywhere
        self._held.clear()
        threading.Thread(target=self._watch, args=(other,), name="watch", daemon=True).start()
        if everywhere:
            self._check()

    def hold(self) -> None:
        """From now on nothing is given up: whoever does the work asks for `reason`."""
        self._giving_up = self._raises = False
        self._held.set()

    def _watch(self, other: Callable[[], str]) -> None:
        while not self._held.wait(WATCH_SECONDS):
            if reason := other() or self.reason:
                self._other = reason
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
                return

    def _receive(self, number: int, frame: FrameType | None) -> None:
        first = self._signal is None
        if self._signal is None:
            self._signal = signal.Signals(number)
        elif number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if first and self._raises:
            self._check()

    def _check(self) -> None:
        if reason := self._other or self.reason:
            raise Stopped(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _listener
        self.hold()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        _listener = None


_listener: Listener | None = None
"""Signals belong to the process, and so does who listens to them."""


def asked_to_stop() -> str:
    """Why this process should stop, for work that waits and asks now and then; empty = no reason."""
    return _listener.reason if _listener is not None else ""


@contextmanager
def interruptible() -> Iterator[None]:
    """Work that may be given up, if a Listener allows it now: on a stop, Stopped is raised."""
    listener = _listener
    if listener is None or not listener._giving_up:
        yield
        return
    before, listener._raises = listener._raises, True
    try:
        listener._check()
        yield
        listener._check()  # what no signal tells, and what came where nothing could be raised
    finally:
        listener._raises = before and listener._giving_up


def in_thread(work: Callable[[], Result]) -> Result:
    """What `work` returns or raises; for calls into libraries that no signal can interrupt.

    Where this thread is interrupted, that of the work is left alone, and ends with the process.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name="work", daemon=True).start()
    return outcome.result()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """A process started in here, and its children, never sees SIGNALS; ours are only delayed."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def restarts_failed(environment: Mapping[str, str]) -> bool:
    """Whether the launcher starts its processes again when one ends with a code other than 0."""
    return environment.get("TORCHELASTIC_MAX_RESTARTS", "0") not in ("", "0")


def restarted(environment: Mapping[str, str]) -> bool:
    """Whether the launcher of this process has started its processes again in place."""
    return environment.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


def ignore_requests() -> None:
    """From now on signals are no requests to stop, as all is done; but Ctrl-C ends a process that hangs."""
    for number in set(SIGNALS) - {signal.SIGINT}:
        signal.signal(number, signal.SIG_IGN)


def _ignored_on_purpose(number: signal.Signals) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN
