"""A lock that keeps a second process out of what one is making, and names who holds it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import weakref
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.errors import UserError


class NoLocksError(UserError):
    """The file system has no locks."""


class LockedError(UserError):
    """Another process holds the lock. owner: what it has noted of itself in the lock's file."""

    def __init__(self, message: str, owner: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.owner = owner


class FileLock:
    """A lock on something, held by this process until `release` or its end, however it ends.

    path: of the lock's file. command: what the owner is called in the message to a second one. For messages,
    what: is locked; other: what to do beside waiting, elsewhere: what to do where a file system has no locks.
    noted: what the owner notes in the lock's file beside who it is.

    Raises LockedError if another process holds it, NoLocksError, OSError if it cannot be made.
    """

    def __init__(
        self, path: Path, command: str, *, what: str, other: str, elsewhere: str,
        noted: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._descriptor: int | None = _lock(path, command, what, other, elsewhere, noted or {})
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


def _lock(
    path: Path, command: str, what: str, other: str, elsewhere: str, noted: Mapping[str, Any]
) -> int:
    """A descriptor that holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "started": now()}
        owner |= {"command": command, **noted}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        return descriptor
    except BlockingIOError as error:
        owner = _owner(descriptor)
        os.close(descriptor)
        raise LockedError(
            f"{what} is in use by {_text(owner)}; wait for it, stop it, or {other}", owner
        ) from error
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            raise NoLocksError(
                f"the file system of {path.parent.absolute()} has no file locks, so nothing would keep "
                f"a second process out; {elsewhere}"
            ) from error
        raise


def _owner(descriptor: int) -> dict[str, Any]:
    """Who holds the lock, as it noted itself in the lock's file; empty where it did not."""
    try:
        owner = json.loads(os.pread(descriptor, 2**16, 0))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _text(owner: Mapping[str, Any]) -> str:
    try:
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']} ({owner['command']})"
    except KeyError:
        return "another process"


def now() -> str:
    """The time of day, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
