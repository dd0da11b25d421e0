"""A process and all that it has started."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def kill_tree(pid: int) -> None:
    """Kills a process and all it started, those with a session of their own too."""
    for member in [pid, *descendants(pid)]:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(member, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes started by `pid`, directly or not (Linux; none elsewhere)."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, children.read_text().split()):
                found += [child, *descendants(child)]
    return found
