"""What the watching process knows of its own rank, and does to it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from llmkit import proc
from llmkit.watchdog.board import Board
from llmkit.watchdog.limits import DISK, STOPPED
from llmkit.watchdog.stacks import Stack, parse

STACKS = signal.SIGRTMIN + 6
"""Asks a rank for the stacks of its threads; answered by faulthandler, also while the GIL is held."""
END = signal.SIGRTMIN + 7
"""Asks a rank to end with the error that was sent to it; answered where its main thread runs Python."""
SLOW = 2.0
"""Seconds without a sign of life from which on it is looked at what the rank does instead."""
IDLE = 0.02
"""Below this share of a processor a process, with all that it started, does nothing."""
STARVED = 0.2
"""From this share of the time on threads that wait for a processor make the time count less."""
DUMP_SECONDS = 1.0
"""How long a rank has to write its stacks."""


class Evidence(NamedTuple):
    """What a look at a rank found. text: all stacks, and what the kernel says, for people."""

    place: str
    exchange: str | None
    excused: str
    text: str


class Member:
    """A rank on this host, seen from outside.

    pid, thread: of its process and its main thread. phases: names of the phases. dump: the file for
    its stacks.
    """

    def __init__(self, pid: int, thread: int, board: Board, dump: int, phases: Sequence[str]) -> None:
        self.pid, self._thread, self._board, self._dump, self._phases = pid, thread, board, dump, phases
        self.sight = board.read()
        self.age = self.stopped = 0.0
        self._since_stop = STOPPED
        self._state = ""
        self._times: proc.Times | None = None
        self._tree: float | None = None

    def look(self, elapsed: float) -> None:
        """Takes what the rank does now. elapsed: seconds since the last look that count at all."""
        sight, was_stopped = self._board.read(), self.stopped > 0.0
        if sight.beats != self.sight.beats:
            self.age, self._times, self._tree = 0.0, None, None
            self.stopped, self._state = 0.0, ""
        else:
            self.age += self._share(elapsed)
        self._since_stop = 0.0 if was_stopped else self._since_stop + elapsed
        self.sight = sight

    def _share(self, elapsed: float) -> float:
        """How much of the time since the last look counts as time in which the rank could go on."""
        self._state = proc.state(self.pid)
        if self._state in ("T", "t"):
            self.stopped += elapsed if self._state == "T" else 0.0
            return 0.0
        self.stopped = 0.0
        if self.sight.patient:
            before, self._tree = self._tree, proc.tree_seconds(self.pid)
            return 0.0 if before is None or self._tree - before > IDLE * elapsed else elapsed
        if self.age < SLOW:
            return elapsed
        # On a machine with too many processes one gets less done: time counts by the share that it gets.
        earlier, self._times = self._times, proc.times(self.pid)
        if earlier is None:
            return elapsed
        running, waiting = (now - old for now, old in zip(self._times, earlier, strict=True))
        return elapsed * running / (running + waiting) if waiting > STARVED * elapsed else elapsed

    def report(self) -> dict[str, Any]:
        """The state of the rank as a message: fields of `Known`, and of its steps."""
        sight, patience = self.sight, min(STOPPED, self.sight.step_limit or STOPPED)
        least = DISK if self._state == "D" else 0.0
        return {
            "phase": self._phases[sight.phase], "step": sight.step, "age": max(self.age, self.stopped),
            "overdue": self.age > max(sight.limit, least) > 0.0, "stuck": self.age > sight.step_limit > 0.0,
            "stopped": self.stopped > patience, "paused": self._since_stop < STOPPED,
            "steps": sight.steps, "own_seconds": sight.own_seconds,
        }  # fmt: skip

    def evidence(self) -> Evidence:
        """Looks at the stacks of the rank; takes DUMP_SECONDS at most."""
        kernel = proc.in_kernel(self.pid)
        if proc.state(self.pid) in ("T", "t", "Z", ""):
            return Evidence("", None, "a debugger" if proc.tracer(self.pid) else "", kernel)
        dump = self._dump_stacks()
        stack = parse(dump).get(self._thread, Stack())
        excused = "a compiler" if stack.compiles else "a debugger" if stack.debugged else ""
        exchange = stack.exchange if stack.frames else None
        return Evidence(stack.place, exchange, excused, f"{dump}\n{kernel}\n")

    def _dump_stacks(self) -> str:
        start = size = os.fstat(self._dump).st_size
        self._signal(STACKS)
        until = time.monotonic() + DUMP_SECONDS
        while time.monotonic() < until:
            time.sleep(0.05)
            before, size = size, os.fstat(self._dump).st_size
            if size == before > start:
                break
        return os.pread(self._dump, size - start, start).decode(errors="replace")

    def end(self, ask: bool, seconds: float, gone: Callable[[], bool]) -> str:
        """Ends the rank within `seconds`; by SIGKILL if it does not end by itself, as where no other ends.

        ask: whether to ask it for that. gone: whether it has ended. Returns the stacks of a rank that was
        stopped by a signal, which can give them only now.
        """
        dump = ""
        if ask:
            self._signal(END)  # of a stopped process it waits
        if proc.state(self.pid) == "T":
            os.kill(self.pid, signal.SIGCONT)
            dump = self._dump_stacks()
        until = time.monotonic() + seconds
        while not gone() and time.monotonic() < until:
            time.sleep(0.05)
        if not gone():
            self._signal(signal.SIGKILL)
        return dump

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(self.pid, number)
