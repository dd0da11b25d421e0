"""Whether a run is under way, has ended, and how: told by its folder alone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmkit.monitor.events import event_time
from llmkit.monitor.jsonlines import Row
from llmkit.ownership.claim import GENERATIONS, is_held, newest_generation, owner_of_generation
from llmkit.run_folder import DONE, LOCK

State = Literal["running", "stalled", "done", "stopped", "failed"]
SILENT_SECONDS = 900.0
"""A run that has written nothing for so long is stalled, unless its rows come more rarely."""
SILENT_AT_START = 3600.0
"""The same before its first row: data are built, a model is compiled."""
ROWS_MISSED = 10
"""Rows that may be overdue."""
_ENDS: dict[str, State] = {"done": "done", "stop": "stopped", "fault": "failed"}
_PROCFS_LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class RunState:
    """How a run stands. reason: a part of a sentence, such as "stopped by SIGTERM".

    since: when it ended, or when something was last written, seconds since 1970; None where nothing was.
    """

    name: State
    reason: str
    since: float | None


def state_of(folder: Path, events: Sequence[Row], row_seconds: float | None, now: float) -> RunState:
    """How the run in a folder stands. row_seconds: between its newest rows, None where that is not known.

    A process of this machine that has the folder is running, one that does not is not; of another
    machine's what it has written last decides. A process that holds the lock itself asks at the end of its
    run. Nothing is written, and no lock is taken.
    """
    held, written = _held(folder), _last_written(folder)
    newest = next((row for row in reversed(events) if row.get("event") in ("start", "resume", *_ENDS)), {})
    begun, name = bool(newest), _ENDS.get(str(newest.get("event")))
    if name is not None and (held is not True or _is_own(folder)):
        return RunState(name, _how(name, newest), time_of(newest))
    if (folder / DONE).exists() and held is not True:
        return RunState("done", "finished", _mtime(folder / DONE))
    refused = next((row for row in reversed(events) if row.get("event") == "refused"), None)
    if refused is not None and not begun and held is not True:
        return RunState("failed", f"refused: {_text(refused)}", time_of(refused))
    if held is False:
        reason = "ended without a word: killed, or its machine went down" if begun else "never began"
        return RunState("failed", reason, written)
    silent = 0.0 if written is None else now - written
    limit = SILENT_AT_START if row_seconds is None else max(SILENT_SECONDS, ROWS_MISSED * row_seconds)
    if silent > limit:
        who = "" if held else ", and only its own machine could tell whether it is alive"
        return RunState("stalled", f"has written nothing for {silent / 60:.0f} minutes{who}", written)
    doing = "is training" if begun else "is starting"
    if name is not None:
        doing = "is starting again or ending"
    return RunState("running", doing, written)


def time_of(event: Row) -> float | None:
    """When an event was, seconds since 1970; None where it does not say."""
    time = event_time(event)
    return None if time is None else time.timestamp()


def _how(name: State, end: Row) -> str:
    step = f" after step {end['step']}" if isinstance(end.get("step"), int) else ""
    if name == "done":
        return f"finished{step}"
    if name == "stopped":
        return f"stopped by {_text(end)}{step}"
    return f"failed{step}: {_text(end)}"


def _text(event: Row) -> str:
    """The first line of an event's reason."""
    return str(event.get("reason", "")).strip().partition("\n")[0] or "no reason is on record"


def _held(folder: Path) -> bool | None:
    """Whether a process of this machine has a run folder; None where that cannot be known.

    Versions until 2026-11-29 have a lock alone. To try to take it would refuse a run that starts in that
    moment, so the kernel's list is read.
    """
    if (folder / GENERATIONS).is_dir():
        return is_held(folder)
    lock = folder / LOCK
    try:
        owner = json.loads(lock.read_bytes()[: 2**16])
        if owner["host"] != socket.gethostname():
            return None
        inode = f":{lock.stat().st_ino}"
        known = _PROCFS_LOCKS.read_text().split() if _PROCFS_LOCKS.exists() else None
    except FileNotFoundError:
        return False  # every run has made its lock
    except (OSError, ValueError, KeyError, TypeError):
        return None
    # A line is as in "1: FLOCK ADVISORY WRITE 1234 08:01:131091 0 EOF".
    return None if known is None else any(word.endswith(inode) for word in known)


def _is_own(folder: Path) -> bool:
    """Whether it is this process that has the run."""
    try:
        owner = owner_of_generation(folder, newest_generation(folder))
    except OSError:
        return False
    return owner is not None and (owner.host, owner.pid) == (socket.gethostname(), os.getpid())


def _last_written(folder: Path) -> float | None:
    names = ("metrics.jsonl", "events.jsonl", "logs/rank-00000.log", "manifest.json")
    return max(filter(None, (_mtime(folder / name) for name in names)), default=None)


def _mtime(path: Path) -> float | None:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return None
