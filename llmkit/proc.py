"""What the kernel tells of a process (Linux): state, start, processor time, how it ended, its children."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


class Times(NamedTuple):
    """Seconds of all threads of a process: on a processor, and ready to run while there was none."""

    running: float
    waiting: float


def state(pid: int) -> str:
    """R running, S sleeping, D waiting for a disk, T stopped, t traced by a debugger, Z ended; "" = gone."""
    fields = _stat(pid)
    return fields[0] if fields else ""


def state_and_start(pid: int) -> tuple[str, str]:
    """Its state, and when it began, in clock ticks since the boot; both "" where it is gone."""
    fields = _stat(pid)
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def parent_of(pid: int) -> int:
    """The process that started it; 0 = it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def end_of(pid: int) -> str:
    """How a process ended, or is about to: a signal's name, or "exit code 3"; "" = it runs, or is unknown, as
    once its parent has waited for it."""
    fields = _stat(pid)
    status = int(fields[49]) if len(fields) > 49 and fields[0] not in "Tt" else 0
    if status == 0:
        return "exit code 0" if fields and fields[0] in "ZX" else ""
    if number := status & 0x7F:
        with suppress(ValueError):
            return signal.Signals(number).name
        return f"signal {number}"
    return f"exit code {status >> 8 & 0xFF}"


def times(pid: int) -> Times:
    """Of all threads that it has now."""
    running = waiting = 0
    for task in _tasks(pid):
        with suppress(OSError, ValueError, IndexError):
            spent, ready, *_ = (PROC / f"{pid}/task/{task}/schedstat").read_text().split()
            running, waiting = running + int(spent), waiting + int(ready)
    return Times(running / 1e9, waiting / 1e9)


def tree_seconds(pid: int) -> float:
    """Seconds of processor time of a process and all below it, those that have ended included."""
    return sum(map(own_seconds, (pid, *descendants(pid))))


def own_seconds(pid: int) -> float:
    """Seconds of processor time of a process and of those below it that have ended."""
    return sum(map(int, _stat(pid)[11:15])) / TICKS


def descendants(pid: int) -> list[int]:
    """Processes started by `pid`, directly or not."""
    found = list[int]()
    for task in _tasks(pid):
        with suppress(OSError, ValueError):
            for child in map(int, (PROC / f"{pid}/task/{task}/children").read_text().split()):
                found += [child, *descendants(child)]
    return found


def kill_tree(pid: int) -> None:
    """Kills a process and all it started, those with a session of their own too."""
    for member in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)


def tracer(pid: int) -> int:
    """The debugger that has attached to it; 0 = none."""
    with suppress(OSError, ValueError):
        for line in (PROC / f"{pid}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def in_kernel(pid: int) -> str:
    """Where the kernel holds its main thread, and the kernel's stack where that may be read; for people."""
    found = [f"state {state(pid) or 'gone'}"]
    for name in ("wchan", "syscall", "stack"):
        with suppress(OSError):
            text = (PROC / f"{pid}/{name}").read_text(errors="replace").strip()
            if text and text != "0":
                found.append(f"{name}: {text}")
    return "\n".join(found)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; empty where the process is gone."""
    try:
        return (PROC / f"{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(PROC / f"{pid}/task")
    except OSError:
        return []
