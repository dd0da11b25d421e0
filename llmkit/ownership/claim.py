"""Which start of a run owns the run folder, also where the file system has no locks.

Every start gets the next generation, a whole number: the folder `generations/00000007` with `owner.json`, who
it is, and `beat`, a counter that a thread of the owner increases every RENEW_SECONDS. The highest generation
owns the run. A start prepares the folder under another name and renames it, which fails where somebody else
has made that generation, on any file system. An owner is alive while its counter changes, by the clock of
whoever looks; neither times of files nor the time of day decide anything.

A start that was taken for dead and goes on (stopped, cut off, left over when its batch system gave up its
node) finds that there is a higher generation before it publishes anything: `Claim.require_current`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

from llmkit.errors import RunFault, UserError
from llmkit.file_lock import FileLock
from llmkit.files import read_json, write_json
from llmkit.ownership.owner import Owner

GENERATIONS, OWNER, BEAT = "generations", "owner.json", "beat"
RENEW_SECONDS = 2.0
"""How often an owner increases its counter, and looks for a higher generation."""
_DIGITS = 8


def newest_generation(path: Path) -> int:
    """The highest generation of a run folder; 0 where there is none. Raises OSError."""
    try:
        names = os.listdir(path / GENERATIONS)
    except FileNotFoundError:
        return 0
    return max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0)


def owner_of_generation(path: Path, generation: int) -> Owner | None:
    """Who has made a generation; None where that cannot be read."""
    try:
        return Owner.from_json(read_json(folder_of(path, generation) / OWNER, ""))
    except UserError:
        return None


def is_held(path: Path) -> bool | None:
    """Whether the newest start of a run still has it; None where this machine cannot tell."""
    with contextlib.suppress(OSError):
        generation = newest_generation(path)
        owner = owner_of_generation(path, generation)
        if owner is not None and owner.released:
            return False
        if owner is not None and owner.inode == os.stat(folder_of(path, generation)).st_ino:
            return owner.runs_here()
    return None


class Claim:
    """What a process of a run knows of its own start. generation: of that start. lost: "", or why the run is
    not its own any more, once that is known."""

    def __init__(self, path: Path, generation: int) -> None:
        self.path, self.generation, self.lost = path, generation, ""

    def require_current(self) -> None:
        """Raises RunFault where a later start has taken over the run: then nothing may be published.

        The same where that cannot be read.
        """
        try:
            self.is_current()
        except OSError as error:
            raise RunFault(
                f"{self.path / GENERATIONS} cannot be read ({error.strerror}), so another start of this run "
                "may have taken it over: nothing is written"
            ) from error
        self.raise_if_lost()

    def is_current(self) -> bool:
        """Whether no later start has taken over the run; sets `lost`. Raises OSError: it cannot be read."""
        gone, newest = self._is_gone(), newest_generation(self.path)
        if newest > self.generation or gone:
            by = owner_of_generation(self.path, newest) if newest > self.generation else None
            who = f"generation {newest}" if newest > self.generation else "a later one"
            self.lost = (
                f"this start (generation {self.generation}) of the run in {self.path.absolute()} was taken "
                f"over by {who}{f' ({by})' if by else ''}: it ends, and writes nothing more"
            )
        return not self.lost

    def _is_gone(self) -> bool:
        """Whether this generation was removed, as a later start does, and not the whole folder.

        On NFS an open finds that at once, while what a folder holds may be remembered for a minute.
        """
        try:
            os.close(os.open(folder_of(self.path, self.generation) / BEAT, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return error.errno in (errno.ENOENT, errno.ESTALE) and (self.path / GENERATIONS).is_dir()
        return False

    def raise_if_lost(self) -> None:
        """Raises RunFault where it is known already; reads nothing."""
        if self.lost:
            raise RunFault(self.lost)


class Ownership(Claim):
    """The claim of the process that holds a run folder, renewed by a thread until `release`.

    before: who had the run, where this start has asked it to stop, else ""; forced: and it did not, in time.
    """

    def __init__(self, path: Path, generation: int, owner: Owner, lock: FileLock | None) -> None:
        super().__init__(path, generation)
        self.before = ""
        self.forced = False
        self._owner, self._lock = owner, lock
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="ownership", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Lets another start have the run at once. A second call does nothing."""
        if self._released.is_set() or os.getpid() != self._owner.pid:
            return
        self._released.set()
        self._thread.join()
        with contextlib.suppress(OSError, RunFault):
            self.require_current()
            write_json(folder_of(self.path, self.generation) / OWNER, self._owner.to_json(released=True))
        if self._lock is not None:
            self._lock.release()

    def _renew(self) -> None:
        count = 0
        while not self._released.wait(RENEW_SECONDS):
            count += 1
            with contextlib.suppress(OSError):  # a disk that fails says so when something is saved
                write_beat(folder_of(self.path, self.generation), count)
            with contextlib.suppress(OSError):
                if not self.is_current():
                    return


def folder_of(path: Path, generation: int) -> Path:
    """The folder of a generation."""
    return path / GENERATIONS / f"{generation:0{_DIGITS}d}"


def write_beat(folder: Path, count: int) -> None:
    """Writes the counter. Of a folder that was renamed or removed nothing is made anew."""
    flags = os.O_WRONLY | os.O_CLOEXEC | (os.O_CREAT if count == 0 else 0)
    file = os.open(folder / BEAT, flags, 0o666)
    try:
        os.pwrite(file, b"%d" % count, 0)
    finally:
        os.close(file)
