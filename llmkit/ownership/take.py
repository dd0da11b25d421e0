"""How a start becomes the owner of a run folder: at once, after a sign of death, or by asking its owner."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from llmkit.errors import UserError
from llmkit.file_lock import FileLock, LockedError, NoLocksError
from llmkit.files import sync_folder, write_json
from llmkit.ownership.claim import (
    BEAT,
    GENERATIONS,
    OWNER,
    Ownership,
    folder_of,
    newest_generation,
    owner_of_generation,
    write_beat,
)
from llmkit.ownership.owner import Owner
from llmkit.stopping import Stopped, asked_to_stop

LEASE_SECONDS = 30.0
"""An owner on another machine whose counter has not changed for so long is taken for dead."""
TAKE_OVER_SECONDS = 120.0
"""How long an owner has to stop and save when another start asks for its run."""
POLL_SECONDS = 0.5
OTHER = "take the run over with --take-over, or choose another run.name"


def take(
    path: Path, owner: Owner, *, lock_name: str, take_over: bool, ask: Callable[[str], None],
    note: Callable[[str], None],
) -> Ownership:  # fmt: skip
    """Makes the next generation of a run folder, which is there.

    take_over: a living owner is asked to stop (`ask`, with who asks), and has TAKE_OVER_SECONDS for it.
    note: called with what this start waits for. Raises UserError where another start owns the run, OSError,
    and Stopped where this process is asked to stop while it waits.
    """
    taking = _Taking(path, owner, path / lock_name)
    try:
        while taking.ownership is None:
            alive = taking.look()
            if alive is False or taking.late:
                taking.make(forced=alive is not False)
                if taking.ownership is None:  # somebody was faster, whom NFS may not show yet
                    time.sleep(POLL_SECONDS)
                continue
            if alive and not take_over:
                raise taking.in_use()
            if alive and taking.until is None:
                taking.asked, taking.until = taking.before, time.monotonic() + TAKE_OVER_SECONDS
                ask(str(owner))
                note(f"asked {taking.who} to stop; the run is taken over in {TAKE_OVER_SECONDS:g} s at most")
            elif alive is None and not taking.waits:
                taking.waits = True
                note(
                    f"the run was last held by {taking.who}, which has not said that it ended: waiting up to "
                    f"{LEASE_SECONDS:g} s for a sign of life"
                )
            if reason := asked_to_stop():
                raise Stopped(reason)
            time.sleep(POLL_SECONDS)
    except BaseException:
        if taking.lock is not None:
            taking.lock.release()
        raise
    return taking.ownership


class _Taking:
    """How far a start has got. before: the newest owner, as last seen; asked: that one was asked to stop, and
    has until then for it; held: by whom the lock is held."""

    def __init__(self, path: Path, owner: Owner, lock_path: Path) -> None:
        self.ownership: Ownership | None = None
        self.lock: FileLock | None = None
        self.held: LockedError | None = None
        self.before: Owner | None = None
        self.asked: Owner | None = None
        self.until: float | None = None
        self.waits = False
        self._path, self._owner, self._lock_path = path, owner, lock_path
        self._watch = _Watch(path, 0)

    def look(self) -> bool | None:
        """Whether the newest owner is alive; None where that is not known yet."""
        newest, self.held = newest_generation(self._path), None
        if self.lock is None:
            self.lock, self.held = _try_lock(self._lock_path, self._owner, newest)
        if self._watch.generation != newest:
            self._watch = _Watch(self._path, newest)
        self.before = owner_of_generation(self._path, newest) if newest else None
        if self.before is not None and self._owner.succeeds(self.before):
            return False
        return True if self.held is not None else self._watch.alive()

    @property
    def late(self) -> bool:
        """Whether the owner has had all the time that it gets to stop."""
        return self.until is not None and time.monotonic() > self.until

    @property
    def who(self) -> str:
        """The newest owner, in words."""
        return str(self.before or "another process")

    def make(self, forced: bool) -> None:
        """Makes the next generation, unless somebody is faster. forced: the owner may still run."""
        newest = self._watch.generation
        if newest == 0 and self.held is not None:  # of a version that knows no generations
            raise self.in_use()
        if (made := _make(self._path, newest + 1, self._owner)) is not None:
            self.ownership = Ownership(self._path, newest + 1, made, self.lock)
            if self.until is not None:
                self.ownership.before, self.ownership.forced = str(self.asked or "another process"), forced

    def in_use(self) -> UserError:
        """The error of a start that has to leave the run to its owner."""
        held, before = self.held, self.before
        if held is not None and (before is None or not _is_of(held, before)):
            return held
        return UserError(
            f"the run folder {self._path.absolute()} is in use by {self.who}; wait for it, stop it, {OTHER}"
        )


class _Watch:
    """Looks at the owner of a generation, again and again."""

    def __init__(self, path: Path, generation: int) -> None:
        self.generation = generation
        self._path, self._beat, self._since = path, b"", time.monotonic()

    def alive(self) -> bool | None:
        """Whether it is alive; None where that is not known yet."""
        if self.generation == 0:
            return False
        owner = owner_of_generation(self._path, self.generation)
        if owner is not None and owner.released:
            return False
        folder = folder_of(self._path, self.generation)
        if owner is not None and owner.inode == _inode(folder) and (runs := owner.runs_here()) is not None:
            return runs
        beat, now = _read_beat(folder), time.monotonic()
        if beat != self._beat:
            first, self._beat, self._since = not self._beat, beat, now
            return None if first else True
        return False if now - self._since > LEASE_SECONDS else None


def _try_lock(path: Path, owner: Owner, newest: int) -> tuple[FileLock | None, LockedError | None]:
    """The lock on a file beside the generations, where that is to be had; or by whom it is held.

    It tells at once what a counter tells after a while, and versions without generations know nothing else.
    On some file systems it keeps out processes of the same machine alone, so that to hold it proves nothing.
    """
    noted = {"generation": newest + 1}
    try:
        return FileLock(
            path, owner.command, what=f"the run folder {path.parent.absolute()}",
            other=OTHER, elsewhere="", noted=noted,
        ), None  # fmt: skip
    except NoLocksError:
        return None, None
    except LockedError as held:
        generation = held.owner.get("generation", newest)
        if isinstance(generation, int) and generation < newest:
            return None, None  # of a start that has lost the run, and still runs
        return None, held


def _make(path: Path, generation: int, owner: Owner) -> Owner | None:
    """Makes a generation, and removes those before it; None where another start has made it."""
    root = path / GENERATIONS
    root.mkdir(exist_ok=True)
    name, final = f".{secrets.token_hex(8)}", folder_of(path, generation)
    prepared = root / name
    try:
        prepared.mkdir()
        owner = replace(owner, inode=_inode(prepared))
        write_json(prepared / OWNER, owner.to_json())
        write_beat(prepared, 0)
        os.rename(prepared, final)  # fails where this generation is there, as its folder is not empty
        sync_folder(root)
    except OSError as error:
        shutil.rmtree(prepared, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):  # as where others are faster
            raise
    if newest_generation(path) > generation or owner_of_generation(path, generation) != owner:
        return None
    for other in os.listdir(root):
        if not (other.isdecimal() and int(other) >= generation):
            shutil.rmtree(root / other, ignore_errors=True)
    return owner


def _is_of(held: LockedError, owner: Owner) -> bool:
    return (held.owner.get("host"), held.owner.get("pid")) == (owner.host, owner.pid)


def _read_beat(folder: Path) -> bytes:
    """The counter; where it cannot be read, something that is no counter."""
    try:
        return (folder / BEAT).read_bytes() or b"?"
    except OSError:
        return b"?"


def _inode(folder: Path) -> int:
    try:
        return os.stat(folder).st_ino
    except OSError:
        return 0
