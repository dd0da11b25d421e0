"""What the kernel tells of a process (Linux): state, processor time, how it ended."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")


class Times(NamedTuple):
    """Seconds of all threads of a process: on a processor, and ready to run while there was none."""

    running: float
    waiting: float


def state(pid: int) -> str:
    """R running, S sleeping, D waiting for a disk, T stopped, t traced by a debugger, Z ended; "" = gone."""
    fields = _stat(pid)
    return fields[0] if fields else ""


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
            spent, ready, *_ = Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()
            running, waiting = running + int(spent), waiting + int(ready)
    return Times(running / 1e9, waiting / 1e9)


def tree_seconds(pid: int) -> float:
    """Seconds of processor time of a process and all below it, those that have ended included."""
    total, waiting = 0.0, [pid]
    while waiting:
        each = waiting.pop()
        if fields := _stat(each):
            total += sum(map(int, fields[11:15])) / TICKS
            waiting += _children(each)
    return total


def tracer(pid: int) -> int:
    """The debugger that has attached to it; 0 = none."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0


def in_kernel(pid: int) -> str:
    """Where the kernel holds its main thread, and the kernel's stack where that may be read; for people."""
    found = [f"state {state(pid) or 'gone'}"]
    for name in ("wchan", "syscall", "stack"):
        with suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_text(errors="replace").strip()
            if text and text != "0":
                found.append(f"{name}: {text}")
    return "\n".join(found)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in _tasks(pid):
        with suppress(OSError, ValueError):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found
