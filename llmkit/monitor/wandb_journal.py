"""What has been given to W&B: an entry for each line of the run's history there, over all its starts.

Entry n says of which line of which file of the run folder line n was made. The server counts lines, and says
how many it has when a run is opened again; so do the files that wandb writes offline. So what is missing is
known exactly, whatever was killed, lost or cut back in between.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

FILES = {"m": "metrics.jsonl", "a": "media.jsonl", "e": "events.jsonl"}
"""Kind of an entry: the file of the run folder."""
RESERVE = 8 * 2**20
"""Bytes that stay free: where the disk takes no more, wandb loses lines that it was given, without a word."""
_LENGTH = 19
"""Bytes of an entry: kind, space, digest, newline."""


def digest(line: bytes) -> str:
    """What tells a line of a file from all others: 16 hexadecimal digits."""
    return hashlib.blake2b(line, digest_size=8).hexdigest()


class Journal:
    """The entries, in a file. An entry is written before its line is given to wandb: the journal is never
    behind wandb. Raises OSError where the disk takes none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._count = os.fstat(self._file).st_size // _LENGTH

    def __len__(self) -> int:
        return self._count

    def append(self, kind: str, line: bytes) -> None:
        """Adds an entry for a line of the file of this kind."""
        self._write(f"{kind} {digest(line)}\n".encode())

    def fill(self, count: int) -> None:
        """Adds entries of no file up to `count`, for lines that came from elsewhere."""
        self._write(f"? {digest(b'')}\n".encode() * (count - self._count))

    def keep(self, count: int) -> None:
        """Drops all entries after the first `count`."""
        self._count = min(self._count, count)
        os.ftruncate(self._file, self._count * _LENGTH)

    def digests(self, kind: str) -> set[str]:
        """Those of the entries of a kind."""
        data = os.pread(self._file, self._count * _LENGTH, 0).decode("ascii", "replace")
        entries = (data[start : start + _LENGTH] for start in range(0, len(data), _LENGTH))
        return {entry[2:18] for entry in entries if entry[0] == kind}

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self, entries: bytes) -> None:
        place, disk = self._count * _LENGTH, os.fstatvfs(self._file)
        if disk.f_bavail * disk.f_frsize < RESERVE:
            raise OSError(28, os.strerror(28), str(self._path))
        written = os.pwrite(self._file, entries, place)
        if written < len(entries):  # the disk is full; half an entry would count as one later
            os.ftruncate(self._file, place)
            raise OSError(28, os.strerror(28), str(self._path))
        self._count += len(entries) // _LENGTH
