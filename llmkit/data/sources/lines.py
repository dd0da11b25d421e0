"""Files cut by separators: the lines of a jsonl file, the documents of a text file."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from llmkit.data.sources.formats import Format
from llmkit.data.sources.raw_reader import RawReader
from llmkit.data.sources.records import MAX_RECORD_BYTES
from llmkit.data.sources.remote import RandomFile

CHUNK_BYTES = 256 << 10


def parts_of(
    file: RandomFile, form: Format, start: int, end: int, first: int = 0, hint: int = 0
) -> Iterator[tuple[int, int, bytes | None]]:
    """Parts of a unit from part `first` on: number, hint and content, as `split` gives it.

    The unit has the parts before which a separator ends in (start, end], and the file's first part if start
    is 0. So a part may go on behind the unit, and one that begins at the very end still belongs to it.
    hint: as an earlier call gave it with `first`: where that part begins, in the file or the unpacked unit.
    """
    if form.compression is None:
        unit = start
        begin = hint or safe_start(file, start, form.separator)
        chunks = _chunks(file, begin, end)
        edge = _Edge(end)
    else:
        unit, begin, edge = 0, hint, _Edge(None)
        chunks = _dropped(_unpacked(file, start, end, form.compression, edge), hint)
    number = first if hint else 0
    for offset, part in split(chunks, form.separator, lambda offset: edge.is_before(begin + offset)):
        place = begin + offset
        if edge.is_before(place):
            return
        if start > 0 and place <= unit:
            continue  # begins in the unit before
        if number >= first:
            yield number, place, part
        number += 1


def split(
    chunks: Iterable[bytes], separator: bytes, is_enough: Callable[[int], bool] = lambda offset: False
) -> Iterator[tuple[int, bytes | None]]:
    """Offset and content of the parts between separators; nothing after the last one is no part.

    The content of a part of more than MAX_RECORD_BYTES is None. It is not kept while the part's end is looked
    for, which is only as long as `is_enough` denies it of the least offset that the next part may have.
    """
    offset = dropped = 0  # where the tail's part begins, and how much of it is not kept
    tail = b""
    waiting: list[bytes] = []
    size = 0
    for chunk in chain(chunks, [None]):
        if chunk is not None:
            waiting.append(chunk)
            size += len(chunk)
            if size < len(tail) and len(tail) + size <= MAX_RECORD_BYTES:
                continue  # a part of many chunks: join them rarely
        *parts, tail = b"".join((tail, *waiting)).split(separator)
        waiting, size = [], 0
        if chunk is None and (tail or dropped):
            parts, tail = [*parts, tail], b""
        for part in parts:
            length, dropped = dropped + len(part), 0
            yield offset, part if length <= MAX_RECORD_BYTES else None
            offset += length + len(separator)
        excess = len(tail) - len(separator) + 1  # what follows may be the beginning of a separator
        if dropped + excess > MAX_RECORD_BYTES and excess > 0:
            tail, dropped = tail[excess:], dropped + excess
        if dropped and is_enough(offset + dropped + len(separator)):
            yield offset, None
            return


def safe_start(file: RandomFile, start: int, separator: bytes) -> int:
    """Where to begin looking for the separators that end behind `start` as if from the file's beginning.

    A separator such as two newlines may overlap with itself: in a run of newlines it depends on the run's
    beginning where they are cut.
    """
    length, place = len(separator), start
    while place > 0:
        low = max(0, place - length + 1)
        found = file.read_at(low, place + length - 1 - low).find(separator)
        if found < 0:  # none lies across this place
            break
        step, place = place - (low + found), low + found
        if separator.startswith(separator[step:]):
            # Where two of it may overlap like this, so do all in a run of what is between their beginnings.
            place = _run_start(file, place, separator[:step])
    return place


def _run_start(file: RandomFile, end: int, unit: bytes) -> int:
    """Where the repeats of `unit` begin that lie one behind the other up to `end`."""
    block_bytes = max(1, CHUNK_BYTES // len(unit)) * len(unit)
    while count := min(block_bytes, end // len(unit) * len(unit)):
        block = np.frombuffer(file.read_at(end - count, count), np.uint8).reshape(-1, len(unit))
        (others,) = np.nonzero((block != np.frombuffer(unit, np.uint8)).any(axis=1))
        if others.size:
            return end - count + (int(others[-1]) + 1) * len(unit)
        end -= count
    return end


def whole(file: RandomFile, form: Format) -> bytes | None:
    """All of a file, unpacked; None if that has more than MAX_RECORD_BYTES."""
    if form.compression is None:
        size = file.file.size
        return file.read_at(0, size) if size <= MAX_RECORD_BYTES else None
    chunks: list[bytes] = []
    size = 0
    for chunk in _unpacked(file, 0, file.file.size, form.compression, _Edge(None)):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_RECORD_BYTES:
            return None
    return b"".join(chunks)


class _Edge:
    """Where a unit ends; of a compressed one known only when it has been unpacked."""

    def __init__(self, place: int | None) -> None:
        self.place = place

    def is_before(self, place: int) -> bool:
        """Whether a part that begins at `place` is no longer the unit's."""
        return self.place is not None and place > self.place


def _chunks(file: RandomFile, start: int, end: int) -> Iterator[bytes]:
    """The file from `start` on, in smaller pieces behind `end`, where only the last part's rest is needed."""
    while start < file.file.size:
        count = min(CHUNK_BYTES, end - start) if start < end else CHUNK_BYTES // 8
        chunk = file.read_at(start, count)
        yield chunk
        start += len(chunk)


def _unpacked(file: RandomFile, start: int, end: int, compression: str, edge: _Edge) -> Iterator[bytes]:
    size = 0
    for low, high in ((start, end), (end, file.file.size)):
        if low == high:
            continue
        raw = RawReader(file, [(low, high)])
        with raw.faults(), _open_packed(raw, compression) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                size += len(chunk)
                yield chunk
        if edge.place is None:
            edge.place = size


def _open_packed(raw: RawReader, compression: str) -> Any:
    """A stream to read what is packed in a file; of gzip several members and zero bytes behind the last."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw)
    import pyarrow as pa  # slow to import, and not needed for other files

    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)


def _dropped(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Chunks without their first `count` bytes."""
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:]
        count = max(0, count - len(chunk))


def is_json_array(file: RandomFile) -> bool:
    """Whether a file holds one JSON array instead of an object a line."""
    return file.read_at(0, 4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
