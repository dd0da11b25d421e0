"""A rank's side of its watchdog: signs of life, and what the watching process has to say."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

from llmkit.end_file import own_host
from llmkit.errors import EndedError
from llmkit.stopping import signals_blocked
from llmkit.watchdog.board import Board
from llmkit.watchdog.diagnosis import Verdict, verdict_of
from llmkit.watchdog.limits import LONG, PATIENT, Limits
from llmkit.watchdog.lines import Lines, Message
from llmkit.watchdog.member import END, STACKS

CLOSE_SECONDS = 2.5
"""How long `close` waits for the watching process; that of rank 0 may outlive it, for the sake of others."""
SCRIPT = Path(__file__).with_name("process.py")
_lingering: list[subprocess.Popen[bytes]] = []
"""Watching processes that have not ended when their rank closed."""


class Hub(NamedTuple):
    """Where the watching processes of all ranks meet. server: of rank 0, listens; None elsewhere."""

    address: str = ""
    port: int = 0
    token: str = ""
    host: str = ""
    server: socket.socket | None = None


class Watched(NamedTuple):
    """What is watched. ends: whether a rank that hangs may be ended, and the others with it.

    run: the run folder. generation: of this start of the run. report_steps: between two rows. end_file: what
    $END_FILE names (`llmkit/end_file.py`).
    """

    run: Path
    rank: int = 0
    world: int = 1
    generation: int = 0
    ends: bool = True
    report_steps: int = 10
    end_file: str | None = None


class Watch:
    """Tells a watching process what this rank does; without `start` all of it does nothing.

    Called by the main thread. phases: their names, of which `beat` gets one. limits: of the phases.
    """

    def __init__(self, phases: Sequence[str] = (), limits: Limits | None = None) -> None:
        self._phases = {name: (index, int(name in PATIENT)) for index, name in enumerate(phases)}
        self._limits = limits or Limits(None, 0.0, foreign=False)
        self._beats = self._step = self._steps = 0
        self._first_step = self._saved_step = -1
        self._own_seconds = 0.0
        self._phase = phases[0] if phases else ""
        self._settled, self._alone = False, True
        self._board: Board | None = None
        self._line: Lines | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._dump = -1
        self._messages: list[Message] = []
        self.verdict: Verdict | None = None
        """Why the run is ended by the watchdog; None = it is not, or that was not read yet."""
        self.hosts: list[str] = []
        """Hosts that may be the cause of that."""

    def start(self, watched: Watched, hub: Hub | None = None) -> None:
        """Starts the watching process. Raises OSError where there can be none: on what is not Linux, too."""
        if not hasattr(os, "memfd_create") or not os.path.isdir("/proc/self"):
            raise OSError("this system has no /proc and no anonymous files")
        hub, self._alone = hub or Hub(), watched.world == 1
        self._board = Board.create()
        self.beat(self._phase)
        self._dump = os.memfd_create("llmkit-stacks", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair()
        server = None if hub.server is None else hub.server.fileno()
        orders: dict[str, Any] = {
            **watched._asdict(), "run": str(watched.run.absolute()),
            "pid": os.getpid(), "thread": threading.main_thread().ident, "host": own_host(os.environ),
            "board": self._board.descriptor, "dump": self._dump, "phases": list(self._phases),
            "listen": server, "hub": hub.address, "port": hub.port, "token": hub.token, "hub_host": hub.host,
            "package": str(Path(__file__).resolve().parents[2]), "path": list(map(str, sys.path)),
        }  # fmt: skip
        signal.signal(STACKS, signal.SIG_IGN)  # what `close` goes back to: a late request would end us
        faulthandler.register(STACKS, self._dump, all_threads=True, chain=False)
        signal.signal(END, self._end)
        passed = [theirs.fileno(), self._board.descriptor, self._dump, *([] if server is None else [server])]
        try:
            with theirs, signals_blocked():
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(SCRIPT), str(theirs.fileno())],
                    stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, cwd="/",
                    pass_fds=passed, start_new_session=True,
                )  # fmt: skip
        except OSError:
            ours.close()
            self._drop()
            raise
        if hub.server is not None:
            hub.server.close()
        self._line = Lines(ours)
        _open.add(self)
        assert self._process.stdin is not None
        with contextlib.suppress(OSError), self._process.stdin as stdin:
            stdin.write(json.dumps(orders).encode())

    def beat(self, phase: str) -> None:
        """A sign of life: this phase begins, or goes on."""
        if self._board is None:
            return
        self._phase = phase
        self._beats += 1
        index, patient = self._phases[phase]
        limits = self._limits
        limit, patient = (LONG, 1) if self._settled else (limits.of(phase), patient)
        self._board.write(
            (
                self._beats, self._step, limit, limits.step, self._own_seconds, self._steps, index, patient,
                self._first_step, self._saved_step,
            )
        )  # fmt: skip

    def alive(self) -> None:
        """A sign of life from within a phase, as between two looks at what is awaited."""
        self.beat(self._phase)

    def step_done(self, step: int, seconds: float, own_seconds: float, steps: int) -> None:
        """A step is over. seconds: that it took. own_seconds: of so many `steps` of this start, without the
        waiting for other ranks."""
        self._limits.saw_step(seconds)
        self._step, self._own_seconds, self._steps = step, own_seconds, steps
        self.alive()

    def saved(self, saved_step: int | None, first_step: int | None = None) -> None:
        """The newest checkpoint holds so many steps; None = there is none. first_step: of this start."""
        self._saved_step = -1 if saved_step is None else saved_step
        if first_step is not None:
            self._first_step = first_step
        self.alive()

    def settle(self) -> None:
        """The last step is done: what follows may take long."""
        self._settled = True
        self.alive()

    def news(self) -> list[Message]:
        """What the watching process has found that ends nothing: `straggler`, `unwatched`."""
        self._receive()
        news, self._messages = self._messages, []
        return news

    def look_for_verdict(self) -> Verdict | None:
        """`verdict`, after a look at what the watching process has sent."""
        self._receive()
        return self.verdict

    def _receive(self) -> None:
        if self._line is None:
            return
        for message in self._line.receive():
            if message.get("kind") == "verdict":
                self.verdict = verdict_of(message)
                self.hosts = message["hosts"]
            else:
                self._messages.append(message)
        if self._line.closed:
            self._line.close()
            self._line = None
            self._messages.append({"kind": "unwatched", "reason": "its watching process has ended"})

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._receive()
        why = "nobody knows why" if self.verdict is None else self.verdict.text
        raise EndedError(f"ended by its watchdog: {why}", self.hosts)

    def close(self) -> None:
        """This rank ends, and is watched no more."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if self._alone:
            process.kill()  # it may not even have begun
        elif self._line is not None:
            self._line.send(kind="left")
            self._line.close()
            self._line = None
        try:
            process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            _lingering.append(process)
        faulthandler.unregister(STACKS)
        signal.signal(END, signal.SIG_IGN)
        self._drop()

    def _drop(self) -> None:
        """Lets go of what is shared with the watching process."""
        _open.discard(self)
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._board is not None:
            self._board.close()
            self._board = None
            os.close(self._dump)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_open: weakref.WeakSet[Watch] = weakref.WeakSet()


def _drop_in_child() -> None:
    """A forked child that outlives the rank must not seem to be it."""
    for watch in list(_open):
        watch._process = None
        watch._drop()


os.register_at_fork(after_in_child=_drop_in_child)
