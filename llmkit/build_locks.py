"""Locks of builds of C++ extensions (`torch.utils.cpp_extension`): files that a killed build leaves behind.

The next build waits for such a lock for ever, and says nothing. llmkit builds none of these extensions, but
plugins may, and operators of DeepSpeed. What Triton and Inductor lock, the system frees when they end.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from llmkit.files import file_system

OLD = 600.0
"""Seconds after which a build has ended, one way or another."""
LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "f2fs"}
"""File systems of one machine: a process that builds would be seen here."""


def clear_build_locks(environment: Mapping[str, str], note: Callable[[str], None]) -> None:
    """Removes locks whose build was certainly killed, and names those that may be in use elsewhere.

    Certain is that no process that can be seen here has the lock open, and that it is older than OLD by the
    clock of its disk, or on a disk of this machine, on which nobody else builds.
    """
    folder = extensions_folder(environment)
    for path, age in lock_ages(folder):
        if _is_open(path):
            continue
        if age > OLD or file_system(path) in LOCAL:
            with contextlib.suppress(OSError):
                path.unlink()
                note(f"note: {path} was left by a build that was killed: it is removed")
        else:
            note(
                f"note: {path} is the lock of a build on another machine, or of one that was killed: a build "
                f"here waits for it; remove it if none is under way (after {OLD / 60:g} minutes a start does)"
            )


def extensions_folder(environment: Mapping[str, str]) -> Path:
    """Where PyTorch builds extensions."""
    if asked := environment.get("TORCH_EXTENSIONS_DIR"):
        return Path(asked)
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "torch_extensions"


def lock_ages(folder: Path) -> list[tuple[Path, float]]:
    """The locks, and how many seconds ago each was made by the clock of its file system."""
    try:
        locks = sorted({*folder.glob("*/lock"), *folder.glob("*/*/lock")})
        if not locks:
            return []
        with tempfile.TemporaryFile(dir=folder) as now:
            os.utime(now.fileno())
            moment = os.fstat(now.fileno()).st_mtime
        return [(lock, moment - lock.stat().st_mtime) for lock in locks]
    except OSError:  # not ours to look at or to write, or just removed
        return []


def _is_open(path: Path) -> bool:
    """Whether a process of this user on this machine has a file open."""
    try:
        wanted = path.stat()
    except OSError:
        return False
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):  # of another user, or just ended
            for entry in os.scandir(descriptors):
                with contextlib.suppress(OSError):
                    found = entry.stat()
                    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return True
    return False
