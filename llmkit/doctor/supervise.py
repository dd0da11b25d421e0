"""Runs the checks in another process, so that one that hangs or dies is itself a finding."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import psutil

from llmkit.config.mistakes import printable
from llmkit.doctor.findings import Finding, finding_from_json
from llmkit.doctor.scope import Scope

BLOCKED = 0.4
"""Share of the time for all checks in which a check that uses no processor counts as hung: 10 of 25 s."""
IDLE = 0.01
"""Share of a core that counts as none: of a load of 12 on 2 cores a process gets 0.16."""
OWN_CORE = 0.8
"""Share of a core with which a check that is not done in time was not held up by others: it waits in a loop,
as drivers do for a GPU."""
POLL = 0.25
TAIL = 300
"""Characters of what a process printed last that are shown."""

Command = Callable[[Sequence[str]], list[str]]


def start_checks(names: Sequence[str]) -> list[str]:
    """The command that runs the checks of these names, one after the other."""
    return [sys.executable, "-m", "llmkit.doctor.checks", *names]


def run_checks(names: Sequence[str], scope: Scope, command: Command = start_checks) -> list[Finding]:
    """What the checks of these names find, in about `scope.seconds` at most.

    One that hangs, or ends its process, fails, and the others go on in another process. Those for which there
    is no time left are a warning: on a busy machine nothing is wrong with them.
    """
    end = time.monotonic() + scope.seconds
    found: list[Finding] = []
    left = list(names)
    while left and time.monotonic() < end:
        process = _Process(command(left), left, scope)
        found += process.run(end)
        left = process.left
    if left:
        value = f"no time for {', '.join(left)} within {scope.seconds:g} s"
        found.append(Finding("time", "warn", value, "check again when less runs here"))
    return found


class _Process:
    """A process that runs some checks. left: those that another process has to run; set by `run`."""

    def __init__(self, command: list[str], names: Sequence[str], scope: Scope) -> None:
        self.left: list[str] = []
        self._names, self._begun, self._blocked = names, 0, BLOCKED * scope.seconds
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `run`
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._output: IO[bytes] = self._process.stdout
        with contextlib.suppress(BrokenPipeError), self._process.stdin as file:
            file.write(json.dumps(scope.to_json()).encode())
        self._used = _Use(self._process.pid, self._blocked)

    def run(self, end: float) -> Iterator[Finding]:
        """What it finds, until it ends, hangs, or the time is over."""
        try:
            for line in self._lines(end):
                kind, content = json.loads(line)
                if kind == "begin":
                    self._begun += 1
                    self._used = _Use(self._process.pid, self._blocked)
                else:
                    yield finding_from_json(content)
            if self._code(end):
                yield self._broken_off(f"its process {self._ending()}")
        except _Hung as hung:
            yield self._broken_off(str(hung))
        except TimeoutError:
            self.left = list(self._names[max(0, self._begun - 1) :])
        finally:
            self._end()

    def _lines(self, end: float) -> Iterator[bytes]:
        """What it writes, line by line. Raises _Hung, or TimeoutError at `end`."""
        rest = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while True:
                if selector.select(POLL):
                    part = os.read(self._output.fileno(), 2**16)
                    if not part:
                        return
                    *lines, rest = (rest + part).split(b"\n")
                    yield from lines
                self._used.require_progress()
                if time.monotonic() > end:
                    self._used.require_held_up()
                    raise TimeoutError

    def _code(self, end: float) -> int | None:
        """The exit code of a process that has found all; None where it has none at `end`. Raises _Hung.

        On a busy machine a process with PyTorch takes its time to end, too.
        """
        while time.monotonic() < end:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(POLL)
            self._used.require_progress()
        return self._process.poll()

    def _broken_off(self, why: str) -> Finding:
        """The check that is under way as one that has failed; the ones behind it are left."""
        self.left = list(self._names[max(1, self._begun) :])
        advice = "look at the kernel's log (dmesg); leave this machine out until the cause is known"
        return Finding(self._names[max(0, self._begun - 1)], "fail", f"the check broke off: {why}", advice)

    def _ending(self) -> str:
        code = self._process.returncode
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - TAIL))
        last = printable(" ".join(self._errors.read().decode(errors="replace").split()), TAIL)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {last}" if last else how

    def _end(self) -> None:
        """Ends it and what it has started; not waited for, where a disk or a driver does not let it go."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        self._output.close()
        self._errors.close()


class _Hung(Exception):
    """How a check has come to a stop."""


class _Use:
    """The processor time of a check, that of the processes it has started included.

    blocked: seconds without any after which it hangs.
    """

    def __init__(self, pid: int, blocked: float) -> None:
        self._pid, self._blocked = pid, blocked
        self._begun = self._moved = time.monotonic()
        self._at_begin = self._seen = _processor_seconds(pid) or 0.0

    def require_progress(self) -> None:
        """Raises _Hung where it has used no processor time for so long."""
        now, seconds = time.monotonic(), _processor_seconds(self._pid)
        if seconds is None or seconds > self._seen + IDLE * self._blocked:
            self._seen, self._moved = seconds or self._seen, now
        if now - self._moved > self._blocked:
            raise _Hung(f"it hangs, without any use of a processor for {self._blocked:g} s")

    def require_held_up(self) -> None:
        """Raises _Hung where it had a core to itself for so long, and did not get done."""
        passed, used = time.monotonic() - self._begun, (_processor_seconds(self._pid) or 0.0) - self._at_begin
        if passed > self._blocked and used > OWN_CORE * passed:
            raise _Hung(f"it hangs: not done after {used:.0f} s of processor time")


def _processor_seconds(pid: int) -> float | None:
    """Of a process and all that it has started; None where one of them has just ended."""
    try:
        process = psutil.Process(pid)
        times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    except psutil.Error:
        return None
    return float(sum(each.user + each.system for each in times))
