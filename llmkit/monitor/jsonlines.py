"""A file of JSON objects, one a line, that survives kill -9, torn writes and a full disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import RunFault, UserError
from llmkit.files import cannot_read, open_regular, plain, sync_folder, write_atomic
from llmkit.ownership.claim import Claim

Row = dict[str, Any]


def parse(line: bytes) -> Row | None:
    """The object in a line, or None where the line holds none (torn, or damaged on the disk)."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


class JsonLines:
    """Appends objects to a file; a line counts from the moment its newline is in the file.

    Every row reaches the kernel before `append` returns, so that a killed process loses none.
    A disk that refuses a row must not end a run: the row is kept in memory, written before the next
    one, and `fault` holds the reason until that succeeds.

    claim: of the start of a run whose record this is. Rows of a start that has lost the run go nowhere: the
    one that took it over has put a copy in the place of each file, and none is opened any more.
    """

    def __init__(self, path: Path | str, claim: Claim | None = None) -> None:
        self.path = Path(path)
        self._claim = claim
        self.fault: str | None = None
        self._file: int | None = None
        self._waiting: list[bytes] = []

    def open(self) -> None:
        """Opens the file now, if there is one: raises UserError where this user could never write a row."""
        try:
            if os.path.lexists(self.path):
                self._opened()
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}), and it is part of the run's record; "
                "mend that, or choose another run.name"
            ) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes `row` as one line. Raises TypeError for values that JSON does not have."""
        self._waiting.append(json.dumps(plain(row), allow_nan=False).encode() + b"\n")
        self._write_waiting()

    def _write_waiting(self) -> None:
        try:
            file = self._opened()
            while self._waiting:
                _write_line(file, self._waiting[0])
                del self._waiting[0]
            self.fault = None
        except OSError as error:
            self.fault = f"{self.path}: {error.strerror}"

    def rows(self) -> list[Row]:
        """Every whole row of the file, oldest first; none if there is no file yet. Raises UserError."""
        return [row for line in self._lines() if (row := parse(line)) is not None]

    def keep(self, wanted: Callable[[Row], bool]) -> int:
        """Drops the rows that are not wanted, and every damaged line; returns how many lines went.

        A new file replaces the old one in one step, so that a crash leaves the one or the other, also where
        nothing is dropped: a process that has the old one open then writes into nothing.
        Raises UserError where the old one cannot be read, RunFault where the new one cannot be written.
        """
        self.close()
        kept, dropped = [], 0
        for line in self._lines(torn=True):
            row = parse(line) if line.endswith(b"\n") else None
            if row is not None and wanted(row):
                kept.append(line)
            else:
                dropped += 1
        if kept or dropped:
            self._replace(b"".join(kept))
        return dropped

    def detach(self) -> None:
        """Puts a copy in the place of the file, if there is one: see `keep`, whose errors it raises."""
        self.close()
        if self.path.is_file() and (content := b"".join(self._lines(torn=True))):  # not os.devnull
            self._replace(content)

    def _replace(self, content: bytes) -> None:
        check = self._claim.require_current if self._claim is not None else lambda: None
        try:
            with write_atomic(self.path, check) as file:
                file.write(content)
            sync_folder(self.path.parent)
        except OSError as error:
            raise RunFault(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        """Writes what waits, if that is possible now, and closes the file; `append` opens it again."""
        if self._waiting:
            self._write_waiting()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _lines(self, torn: bool = False) -> Iterator[bytes]:
        try:
            with open_regular(self.path) as file:
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise cannot_read(self.path, error) from error
        yield from (line for line in lines if torn or line.endswith(b"\n"))

    def _opened(self) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            path = os.devnull if self._claim is not None and not self._claim.is_current() else self.path
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                _drop_torn_end(file)
            except OSError:
                os.close(file)
                raise
            self._file = file
        return self._file


def _write_line(file: int, line: bytes) -> None:
    """Writes all of `line` or nothing: half a line would spoil the one after it."""
    end = os.fstat(file).st_size
    try:
        written = 0
        while written < len(line):
            written += os.write(file, line[written:])
    except OSError:
        os.ftruncate(file, end)
        raise


def _drop_torn_end(file: int) -> None:
    """Cuts off what follows the last newline: the remains of a process that died while writing."""
    size = end = os.fstat(file).st_size
    while end:
        begin = max(0, end - 65536)
        newline = os.pread(file, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            end = begin + newline + 1
            break
        end = begin
    if end < size:
        os.ftruncate(file, end)
