"""Tokens of a live source that are kept on disk, so that its next epoch need not make them again.

A file a unit, which appears when all of the unit was tokenized:

    documents   tokens (little-endian uint16 or uint32), then a bit a token where not all are targets
    table       an entry a candidate, in order (ENTRY)
    reasons     JSON list of the reasons for which candidates are left out
    footer      where the table is, its entries, bytes of the reasons, xxh64 of table and reasons (FOOTER)

Any number of processes may write the same file: all write the same documents, and the last one wins. Nothing
is synced to the disk: a file that a crash has damaged is noticed by its checksums and made again.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import uuid
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from xxhash import xxh64_intdigest

from llmkit.data.sources.records import LeftOut, Record
from llmkit.data.tokens.encode import Encoded

ENTRY = np.dtype(
    [
        ("hint", "<i8"),
        ("size", "<u8"),
        ("kind", "u1"),
        ("mended", "?"),
        ("reason", "<u2"),
        # Of documents alone:
        ("offset", "<u8"),
        ("tokens", "<u4"),
        ("width", "u1"),  # bytes a token
        ("has_targets", "?"),
        ("end_is_target", "?"),
        ("text_bytes", "<u8"),
        ("check", "<u8"),  # xxh64 of the document's bytes
    ]
)
FOOTER = struct.Struct("<QQQQ8s")
MAGIC = b"llmkept1"
DOCUMENT, LEFT_OUT, HELD_OUT = 1, 2, 3
"""Kinds of candidates; 0 is none, so that an entry that was not filled is noticed."""
STALE_SECONDS = 2 * 24 * 3600
"""A file that was begun and not written to for so long belongs to a process that died."""

Content = Record | Encoded | LeftOut | None
"""What is known of a candidate: its record, its tokens, why it is not used; None = it is held out."""


@dataclass(slots=True)
class Item:
    """A candidate of a unit. hint: what its reader gave with it. size: about its characters."""

    number: int
    hint: int
    size: int
    content: Content
    mended: bool = False


class DamagedError(Exception):
    """A file of kept tokens that is not as it was written; it was removed."""


def _path(folder: Path, unit: int) -> Path:
    return folder / f"unit-{unit:06d}.tokens"


class KeptUnit:
    """The candidates of a unit, with the tokens that were kept."""

    def __init__(self, path: Path, file: int, table: np.ndarray, reasons: list[str]) -> None:
        self._path, self._file, self._table, self._reasons = path, file, table, reasons

    @classmethod
    def open(cls, folder: Path, unit: int) -> KeptUnit | None:
        """The kept tokens of a unit; None if there are none. Raises DamagedError."""
        path = _path(folder, unit)
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            return cls(path, file, *_read_table(file))
        except (OSError, ValueError, struct.error):
            os.close(file)
            raise _damaged(path) from None

    def hint(self, number: int) -> int:
        """What the reader gave with a candidate."""
        return int(self._table[number]["hint"]) if number < len(self._table) else 0

    def read(self, first: int) -> Generator[Item]:
        """The candidates from `first` on. Raises DamagedError where a document is not as it was written."""
        for number in range(first, len(self._table)):
            entry = self._table[number]
            content: Content = None
            if entry["kind"] == LEFT_OUT:
                content = LeftOut(self._reasons[entry["reason"]], "")
            elif entry["kind"] == DOCUMENT:
                content = self._document(entry)
            yield Item(number, int(entry["hint"]), int(entry["size"]), content, bool(entry["mended"]))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _document(self, entry: np.void) -> Encoded:
        count, width = int(entry["tokens"]), int(entry["width"])
        masks = (count + 7) // 8 if entry["has_targets"] else 0
        try:
            content = os.pread(self._file, count * width + masks, int(entry["offset"]))
        except OSError:
            raise _damaged(self._path) from None
        if xxh64_intdigest(content) != entry["check"]:
            raise _damaged(self._path)
        tokens = np.frombuffer(content, dtype=f"<u{width}", count=count).astype(np.int32)
        targets = None
        if masks:
            bits = np.frombuffer(content, dtype=np.uint8, offset=count * width)
            targets = np.unpackbits(bits, count=count, bitorder="little").astype(bool)
        return Encoded(tokens, targets, int(entry["text_bytes"]), bool(entry["end_is_target"]))


def _read_table(file: int) -> tuple[np.ndarray, list[str]]:
    """Table and reasons; raises ValueError, OSError or struct.error if they are not as they were written."""
    size = os.fstat(file).st_size
    footer = os.pread(file, FOOTER.size, max(0, size - FOOTER.size))
    start, entries, reasons_bytes, check, magic = FOOTER.unpack(footer)
    table_bytes = entries * ENTRY.itemsize
    if magic != MAGIC or start + table_bytes + reasons_bytes + FOOTER.size != size:
        raise ValueError
    content = os.pread(file, table_bytes + reasons_bytes, start)
    if xxh64_intdigest(content) != check:
        raise ValueError
    return np.frombuffer(content, dtype=ENTRY, count=entries), json.loads(content[table_bytes:])


def _damaged(path: Path) -> DamagedError:
    with contextlib.suppress(OSError):
        path.unlink()
    return DamagedError(f"{path} is damaged and was removed")


def _remove_stale(folder: Path, pattern: str, now: float) -> None:
    """Removes files that were left behind; nothing depends on it. now: by the clock of the disk."""
    for leftover in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process may remove it, or have finished it, at any time
            if now - leftover.stat().st_mtime > STALE_SECONDS:
                leftover.unlink()


class UnitKeeper:
    """Writes the tokens of a unit while its candidates are used, in windows, each in any order."""

    def __init__(self, folder: Path, unit: int) -> None:
        self._path = _path(folder, unit)
        self._partial = folder / f".{self._path.stem}-{uuid.uuid4().hex[:12]}"
        self._error: OSError | None = None
        self._tables: list[np.ndarray] = []
        self._first, self._offset = 0, 0
        self._reasons: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._partial.open("wb", buffering=1 << 17)
            _remove_stale(folder, f".{self._path.stem}-*", os.fstat(self._file.fileno()).st_mtime)
        except OSError as error:
            self._error = error

    def begin_window(self, items: Sequence[Item]) -> None:
        """The next candidates of the unit, in the order of their numbers; then each of them is added."""
        self._first = items[0].number
        table = np.zeros(len(items), dtype=ENTRY)
        table["hint"] = [item.hint for item in items]
        table["size"] = [item.size for item in items]
        table["mended"] = [item.mended for item in items]
        self._tables.append(table)

    def add(self, item: Item) -> None:
        """A candidate of the window with what became of it: tokens, why there are none, None if held out."""
        if self._error is not None:
            return
        entry, content = self._tables[-1][item.number - self._first], item.content
        if isinstance(content, Encoded):
            try:
                self._write(entry, content)
            except OSError as error:
                self._fail(error)
        elif isinstance(content, LeftOut):
            entry["kind"] = LEFT_OUT
            entry["reason"] = self._reasons.setdefault(content.reason, len(self._reasons))
        else:
            entry["kind"] = HELD_OUT

    def finish(self) -> OSError | None:
        """The unit is at its end: its file appears. Returns what kept it from being written, if so."""
        if self._error is None:
            table = np.concatenate([np.zeros(0, dtype=ENTRY), *self._tables])
            assert table["kind"].all(), self._path
            content = table.tobytes() + (reasons := json.dumps(list(self._reasons)).encode())
            footer = FOOTER.pack(self._offset, len(table), len(reasons), xxh64_intdigest(content), MAGIC)
            try:
                self._file.write(content + footer)
                self._file.close()
                os.replace(self._partial, self._path)
            except OSError as error:
                self._fail(error)
        return self._error

    def abandon(self) -> None:
        """Leave nothing."""
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)
        if self._error is None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _fail(self, error: OSError) -> None:
        self.abandon()
        self._error = error

    def _write(self, entry: np.void, document: Encoded) -> None:
        tokens = document.tokens
        width = 2 if not tokens.size or int(tokens.max()) < 1 << 16 else 4
        content = tokens.astype(f"<u{width}").tobytes()
        if document.targets is not None:
            content += np.packbits(document.targets, bitorder="little").tobytes()
        self._file.write(content)
        entry["kind"], entry["offset"] = DOCUMENT, self._offset
        entry["tokens"], entry["width"] = tokens.size, width
        entry["has_targets"], entry["end_is_target"] = document.targets is not None, document.end_is_target
        entry["text_bytes"], entry["check"] = document.text_bytes, xxh64_intdigest(content)
        self._offset += len(content)
