"""Sources of text as numbered candidate documents, read one at a time.

A candidate is a file, a part of a file or a line; it has a number before anything of it is decoded, so that
the held-out choice needs no text. A candidate that turns out to hold no usable text is left out and counted.
"""

from __future__ import annotations

import json
import random
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from llmkit.config import schema
from llmkit.data.sources.source_files import list_files
from llmkit.errors import UserError

EMPTY = "empty"
NOT_UTF8 = "not UTF-8"
BROKEN_JSON = "broken JSON"
NO_OBJECT = "no JSON object"
NO_FIELD = "without the field"
NO_STRING = "no string"
MENDED = "mended with U+FFFD"
"""Keys of the counters; all but the last are documents left out."""

Policy = Literal["skip", "replace", "raise"]

_SURROGATE = re.compile("[\ud800-\udfff]")


class _UnusableError(Exception):
    """A candidate that holds no usable text. reason: its counter. detail: what exactly is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        self.reason, self.detail = reason, detail


def left_out_summary(left_out: Counter[str]) -> str:
    """Counters as one line: "5 documents left out: 3 empty, 2 not UTF-8"; empty if there are none."""
    reasons = {reason: count for reason, count in left_out.most_common() if reason != MENDED}
    parts = []
    if reasons:
        total = sum(reasons.values())
        listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        parts.append(f"{total} document{'s' * (total > 1)} left out: {listed}")
    if left_out[MENDED]:
        parts.append(f"{left_out[MENDED]} {MENDED}")
    return "; ".join(parts)


def split_heldout(count: int, heldout_every: int) -> tuple[list[int], list[int]]:
    """Numbers of the training and of the held-out documents, both in a fixed shuffled order.

    All `count` candidates take part, also those that are left out later: `count // heldout_every` of them
    are held out (none for 0).
    """
    order = list(range(count))
    random.Random(0).shuffle(order)
    heldout = count // heldout_every if heldout_every else 0
    return order[heldout:], order[:heldout]


class Documents:
    """The documents of one source.

    spec: the source's settings. name: in messages. place: the key of the settings, for messages. errors:
    what to do with a bad document: leave it out, put U+FFFD for what is no UTF-8, or raise. An empty
    document is nothing to lose: all three leave it out.
    Raises UserError where there is no file, and, for `raise`, at the first bad document.
    """

    def __init__(self, spec: schema.Source, name: str, place: str, errors: Policy) -> None:
        self.spec, self.name, self.errors = spec, name, errors
        self.files = list_files(spec, place)
        self._separator = spec.separator.encode() if spec.separator else None
        if spec.type == "jsonl":
            self._separator = b"\n"
        # Byte ranges of the candidates, only for files that are cut; arrays, since there may be millions.
        self._start, self._end = array("q"), array("q")
        self._first: list[int] = []  # number of each file's first candidate

    def __len__(self) -> int:
        """Number of candidates; the first call reads all files that are cut."""
        if self._separator is None:
            return len(self.files)
        if not self._first:
            self._scan(self._separator)
        return len(self._start)

    def texts(self, numbers: Iterable[int], left_out: Counter[str]) -> Iterator[str]:
        """The documents with these numbers, in this order; what is left out or mended is counted."""
        for number in numbers:
            path, where, start, end = self._locate(number)
            content = _read(path, start, end)
            try:
                text = self._decode(content, left_out)
                if self.spec.type == "jsonl" and text.strip():
                    text = self._field(text, left_out)
            except _UnusableError as error:
                if self.errors == "raise":
                    raise UserError(
                        f"{where}: {error.detail}; mend the file, or set data.errors to skip or replace"
                    ) from None
                left_out[error.reason] += 1
                continue
            if text.strip():
                yield text
            else:
                left_out[EMPTY] += 1

    def _scan(self, separator: bytes) -> None:
        for path in self.files:
            self._first.append(len(self._start))
            for start, end in _cut(path, separator):
                self._start.append(start)
                self._end.append(end)

    def _locate(self, number: int) -> tuple[Path, str, int, int | None]:
        """File, place for messages, first byte and end of a candidate."""
        assert 0 <= number < len(self), (number, len(self))
        if self._separator is None:
            return self.files[number], str(self.files[number]), 0, None
        file = bisect_right(self._first, number) - 1
        part = number - self._first[file] + 1
        path = self.files[file]
        where = f"{path}:{part}" if self.spec.type == "jsonl" else f"{path}, document {part}"
        return path, where, self._start[number], self._end[number]

    def _decode(self, content: bytes, left_out: Counter[str]) -> str:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if self.errors != "replace":
                raise _UnusableError(NOT_UTF8, f"byte {error.start} is no UTF-8") from None
        left_out[MENDED] += 1
        return content.decode("utf-8-sig", errors="replace")

    def _field(self, line: str, left_out: Counter[str]) -> str:
        """The text of a JSON record."""
        field = self.spec.text_field
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _UnusableError(BROKEN_JSON, f"broken JSON ({error})") from None
        if not isinstance(record, dict):
            raise _UnusableError(NO_OBJECT, f"the line holds {line.strip()!r:.40}, not a JSON object")
        if field not in record:
            raise _UnusableError(NO_FIELD, f"the record has no field {field!r}")
        text = record[field]
        if not isinstance(text, str):
            raise _UnusableError(NO_STRING, f"field {field!r} is {json.dumps(text):.40}, not a string")
        if _SURROGATE.search(text) is None:
            return text
        if self.errors != "replace":
            raise _UnusableError(NOT_UTF8, f"field {field!r} holds a lone surrogate, which no UTF-8 can hold")
        left_out[MENDED] += 1
        return _SURROGATE.sub("\ufffd", text)


def _cut(path: Path, separator: bytes, chunk_bytes: int = 1 << 20) -> Iterator[tuple[int, int]]:
    """First byte and end of each part of a file, without the separators between them."""
    start = base = 0  # of the part at hand; of the window in the file
    window = b""
    try:
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(chunk_bytes):
                # The end of the last chunk is kept: a separator may lie across two.
                keep = window[max(0, len(window) - len(separator) + 1) :]
                base += len(window) - len(keep)
                window = keep + chunk
                while (found := window.find(separator, max(0, start - base))) >= 0:
                    yield start, base + found
                    start = base + found + len(separator)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if start < base + len(window):
        yield start, base + len(window)


def _read(path: Path, start: int, end: int | None) -> bytes:
    try:
        if end is None:
            return path.read_bytes()
        with path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
