"""A lock that keeps a second process out of what one is making, and names who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import weakref
from datetime import UTC, datetime
from pathlib import Path

from llmkit.errors import UserError


class FileLock:
    """A lock on something, held by this process until `release` or its end, however it ends.

    path: of the lock's file. command: what the owner is called in the message to a second one. For messages,
    what: is locked; other: what to do beside waiting, elsewhere: what to do where a file system has no locks.

    Raises UserError if another process holds it, OSError if it cannot be made.
    """

    def __init__(self, path: Path, command: str, *, what: str, other: str, elsewhere: str) -> None:
        self._descriptor: int | None = _lock(path, command, what, other, elsewhere)
        _held.add(self)

    def release(self) -> None:
        """Let others have it. Nothing if that has been done."""
        _held.discard(self)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked worker that outlives the run must not keep its lock."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)


def _lock(path: Path, command: str, what: str, other: str, elsewhere: str) -> int:
    """A descriptor that holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": now(), "command": command}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        return descriptor
    except BlockingIOError as error:
        owner_text = _owner(descriptor)
        os.close(descriptor)
        raise UserError(
            f"{what} is in use by {owner_text}; wait for it, stop it, or {other}"
        ) from error
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise UserError(
                f"the file system of {path.parent.absolute()} has no file locks, so nothing would keep "
                f"a second process out; {elsewhere}"
            ) from error
        raise


def _owner(descriptor: int) -> str:
    """Who holds the lock, as it noted itself in the lock's file."""
    try:
        owner = json.loads(os.pread(descriptor, 2**16, 0))
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']} ({owner['command']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def now() -> str:
    """The time of day, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
