"""What has been given to W&B: an entry for each line of the run's history there, over all its starts.

Entry n says of which line of which file of the run folder line n was made. The server counts lines, and says
how many it has when a run is opened again; so do the files that wandb writes offline. So what is missing is
known exactly, whatever was killed, lost or cut back in between.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

FILES = {"m": "metrics.jsonl", "a": "media.jsonl", "e": "events.jsonl"}
"""Kind of an entry: the file of the run folder."""
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

    def last(self, kind: str) -> Iterator[str]:
        """The digests of the entries of a kind, newest first."""
        for number in reversed(range(self._count)):
            entry = os.pread(self._file, _LENGTH, number * _LENGTH).decode("ascii", "replace")
            if entry[0] == kind:
                yield entry[2:18]

    def end(self, kind: str, ends: Mapping[str, int]) -> int:
        """The offset in the file of this kind up to which its lines have entries.

        ends: of each line of the file, by digest. Lines that were cut off since then are in none, and those
        that came in their place have no entry.
        """
        return next((ends[found] for found in self.last(kind) if found in ends), 0)

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _write(self, entries: bytes) -> None:
        place = self._count * _LENGTH
        written = os.pwrite(self._file, entries, place)
        if written < len(entries):  # the disk is full; half an entry would count as one later
            os.ftruncate(self._file, place)
            raise OSError(28, os.strerror(28), str(self._path))
        self._count += len(entries) // _LENGTH
