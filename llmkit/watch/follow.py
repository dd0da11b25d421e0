"""Reading a file of JSON lines while somebody else writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from llmkit.files import open_regular
from llmkit.monitor.jsonlines import Row, parse

BLOCK = 1 << 22


class News(NamedTuple):
    """Whole rows that were added. anew: whether the file is another one than before; then all its rows."""

    rows: list[Row]
    anew: bool


class FollowedFile:
    """The rows of a file that grows, and that is cut back or replaced when its run is resumed.

    It is opened for each reading, which is what disks of a network need, and never written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0  # behind the last whole line that was read
        self._last = b""  # that line

    def read(self) -> News:
        """What is new since the last reading; nothing where the file cannot be read at the moment."""
        try:
            with open_regular(self._path) as file:
                anew = self._offset > 0 and not self._is_same(file.fileno())
                if anew:
                    self._offset, self._last = 0, b""
                return News(self._rows(file.fileno()), anew)
        except FileNotFoundError:
            anew, self._offset, self._last = self._offset > 0, 0, b""
            return News([], anew)
        except OSError:
            return News([], False)

    def _is_same(self, file: int) -> bool:
        """Whether the line that was read last is where it was."""
        begin = self._offset - len(self._last)
        return os.pread(file, len(self._last), begin) == self._last

    def _rows(self, file: int) -> list[Row]:
        rows, rest = list[Row](), b""
        while block := os.pread(file, BLOCK, self._offset + len(rest)):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._offset += len(line) + 1
                if (row := parse(line)) is not None:
                    rows.append(row)
            if lines:
                self._last = lines[-1] + b"\n"
        return rows
