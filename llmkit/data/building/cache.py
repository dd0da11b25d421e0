"""Folders of the cache: each is made once, by one process, and is there whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import JsonValue

from llmkit.errors import RunFault, UserError
from llmkit.files import NoAccessError, may_exist, owner_of, sync_folder

Report = Callable[[str], None]
"""Takes lines for the user."""


def content_key(described: dict[str, JsonValue]) -> str:
    """A hash of all that decides the content of a folder, for its name."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]


def build_once(folder: Path, fill: Callable[[Path], None], report: Report) -> None:
    """Makes a folder of the cache, if it is not there.

    fill: is given a temporary folder, maybe with parts of an earlier build that was killed, and makes `whole`
    in it, which becomes the folder. Any number of processes may call this at once: one makes the folder, the
    others wait. A UserError of `fill` clears the temporary folder.
    Raises UserError where the cache cannot be a folder, RunFault where it cannot be written.
    """
    if may_exist(folder):
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_cache(folder.parent, "cannot be made a folder", error) from error
    with _file_lock(folder, report) as alone:
        if may_exist(folder):
            return
        # Where the file system has no locks, each process works for itself and the first to end wins.
        own = "" if alone else f"-{uuid.uuid4().hex[:12]}"
        tmp = folder.with_name(f".building-{folder.name}{own}")
        try:
            tmp.mkdir(exist_ok=True)
            with write_folder(folder, tmp / "whole"):
                fill(tmp)
            _clear(tmp)
        except PermissionError as error:
            raise _no_cache(tmp, "cannot be written", error) from error
        except OSError as error:
            raise RunFault(
                f"{tmp}: cannot be written ({error.strerror or error}); is the disk full?"
            ) from error
        except UserError:
            _clear(tmp)
            raise
        finally:
            if not alone:
                _clear(tmp)


@contextlib.contextmanager
def write_folder(folder: Path, tmp: Path) -> Iterator[None]:
    """What is made as `tmp` in the block becomes `folder` by one rename, unless another process was first.

    So the folder is whole or absent. `tmp` is emptied before; nothing of it remains where the block raises.
    """
    _clear(tmp)
    try:
        yield
        try:
            os.rename(tmp, folder)
        except OSError:
            if not folder.exists():
                raise
        sync_folder(folder.parent)
    finally:
        _clear(tmp)


def discard(folder: Path) -> None:
    """Deletes a folder that another process may still be writing.

    It is renamed first: otherwise that process could give its name to a half-deleted folder. Nothing is done
    where it is gone.
    """
    away = folder.with_name(f".discarded-{uuid.uuid4().hex[:12]}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(away)
    _clear(away)


@contextlib.contextmanager
def opening_cache() -> Iterator[None]:
    """What lies in the cache and may not be read by this user is not to be deleted: the error says so."""
    try:
        yield
    except NoAccessError as error:
        raise NoAccessError(f"{error}, or choose another data.cache_dir") from error


def _no_cache(path: Path, what: str, error: OSError) -> UserError:
    ask = f"ask {owner_of(path)} for write access, or " if isinstance(error, PermissionError) else ""
    return UserError(f"data.cache_dir: {path} {what} ({error.strerror}); {ask}choose another data.cache_dir")


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _file_lock(folder: Path, report: Report) -> Iterator[bool]:
    """Waits until no other process makes the folder; yields whether the file system has locks at all.

    The system frees the lock of a process that dies.
    """
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        file = lock.open("a")
    except OSError as error:
        raise _no_cache(lock, "cannot be written", error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"data: another process builds {folder}, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
