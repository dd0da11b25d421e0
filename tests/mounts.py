"""Mount points that only this process and its children see."""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

NEW_MOUNTS = 0x20000  # CLONE_NEWNS, which os.unshare has from Python 3.12 on


def own_mounts() -> str | None:
    """From now on this process has mount points of its own; returns why that cannot be, or None."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_MOUNTS) != 0:
        return f"unshare(2): {os.strerror(ctypes.get_errno())}"
    done = subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True, text=True)
    return done.stderr.strip() or None


def mount(*arguments: str | Path) -> None:
    """mount(8); raises CalledProcessError where it cannot."""
    subprocess.run(["mount", *map(str, arguments)], check=True)


def tmpfs(folder: Path, options: str) -> Path:
    """A small file system in memory, at a folder that is made."""
    folder.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", options, "tmpfs", folder)
    return folder
