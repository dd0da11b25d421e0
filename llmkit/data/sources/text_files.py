"""Files cut by separators: the lines of a jsonl file, the documents of a text file.

A compressed file is not split: what is in its middle can be read only from its beginning on.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

from llmkit.data.sources.byte_reader import ArrowSource, ByteReader
from llmkit.data.sources.formats import Format
from llmkit.data.sources.records import MAX_RECORD_BYTES

CHUNK_BYTES = 256 << 10


def read_records(
    file: ByteReader, form: Format, start: int, end: int, first: int = 0, seek_hint: int = 0
) -> Iterator[tuple[int, int, bytes | None]]:
    """Records of a split from record `first` on: index, seek hint and content, None as in `cut`.

    The split has the records before which a separator ends in (start, end], and the file's first record if
    start is 0. So a record may go on behind the split, and one that begins at the very end still belongs to
    it. seek_hint: as an earlier call gave it with `first`: offset of that record, unpacked.
    """
    if form.compression is None:
        begin = seek_hint or aligned_start(file, start, form.separator)
        chunks = _chunks(file, begin, end)
    else:
        start, end, begin = 0, sys.maxsize, seek_hint
        chunks = _without_first(_unpacked(file, form.compression), seek_hint)
    index = first if seek_hint else 0
    for offset, content in cut(chunks, form.separator, lambda offset: begin + offset > end):
        at = begin + offset
        if at > end:
            return
        if start > 0 and at <= start:
            continue  # begins in the split before
        if index >= first:
            yield index, at, content
        index += 1


def cut(
    chunks: Iterable[bytes], separator: bytes, is_enough: Callable[[int], bool] = lambda offset: False
) -> Iterator[tuple[int, bytes | None]]:
    """Offset and content of the records between separators; nothing after the last one is no record.

    The content of a record of more than MAX_RECORD_BYTES is None. It is not kept while its end is looked for,
    which is only until `is_enough` is true of the least offset that the next record may have.

    >>> list(cut([b"ab|cd", b"ef|gh"], b"|"))
    [(0, b'ab'), (3, b'cdef'), (8, b'gh')]
    """
    offset = dropped = 0  # where the tail's record begins, and how much of it is not kept
    tail = b""
    waiting: list[bytes] = []
    size = 0
    for chunk in chain(chunks, [None]):
        if chunk is not None:
            waiting.append(chunk)
            size += len(chunk)
            if size < len(tail) and len(tail) + size <= MAX_RECORD_BYTES:
                continue  # a record of many chunks: join them rarely
        *records, tail = b"".join((tail, *waiting)).split(separator)
        waiting, size = [], 0
        if chunk is None and (tail or dropped):
            records, tail = [*records, tail], b""
        for record in records:
            length, dropped = dropped + len(record), 0
            yield offset, record if length <= MAX_RECORD_BYTES else None
            offset += length + len(separator)
        excess = len(tail) - len(separator) + 1  # what follows may be the beginning of a separator
        if dropped + excess > MAX_RECORD_BYTES and excess > 0:
            tail, dropped = tail[excess:], dropped + excess
        if dropped and is_enough(offset + dropped + len(separator)):
            yield offset, None
            return


def aligned_start(file: ByteReader, start: int, separator: bytes) -> int:
    """Where to begin looking for the separators that end behind `start` as if from the file's beginning.

    A separator such as two newlines may overlap with itself: in a run of newlines it depends on the run's
    beginning where they are cut.
    """
    length, at = len(separator), start
    while at > 0:
        low = max(0, at - length + 1)
        found = file.read_at(low, at + length - 1 - low).find(separator)
        if found < 0:  # none lies across this offset
            break
        step, at = at - (low + found), low + found
        if separator.startswith(separator[step:]):
            # Where two of it may overlap like this, so do all in a run of what is between their beginnings.
            at = _run_start(file, at, separator[:step])
    return at


def _run_start(file: ByteReader, end: int, period: bytes) -> int:
    """Where the repeats of `period` begin that lie one behind the other up to `end`."""
    block_bytes = max(1, CHUNK_BYTES // len(period)) * len(period)
    while count := min(block_bytes, end // len(period) * len(period)):
        block = np.frombuffer(file.read_at(end - count, count), np.uint8).reshape(-1, len(period))
        (others,) = np.nonzero((block != np.frombuffer(period, np.uint8)).any(axis=1))
        if others.size:
            return end - count + (int(others[-1]) + 1) * len(period)
        end -= count
    return end


def read_all(file: ByteReader, form: Format) -> bytes | None:
    """All of a file, unpacked; None if that has more than MAX_RECORD_BYTES."""
    if form.compression is None:
        size = file.file.size
        return file.read_at(0, size) if size <= MAX_RECORD_BYTES else None
    chunks: list[bytes] = []
    size = 0
    for chunk in _unpacked(file, form.compression):
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_RECORD_BYTES:
            return None
    return b"".join(chunks)


def is_json_array(file: ByteReader) -> bool:
    """Whether a file holds one JSON array instead of an object a line."""
    return file.read_at(0, 4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _chunks(file: ByteReader, start: int, end: int) -> Iterator[bytes]:
    """The file from `start` on, in smaller chunks behind `end`, where only the rest of a record is needed."""
    while start < file.file.size:
        chunk = file.read_at(start, min(CHUNK_BYTES, end - start) if start < end else CHUNK_BYTES // 8)
        yield chunk
        start += len(chunk)


def _unpacked(file: ByteReader, compression: str) -> Iterator[bytes]:
    raw = ArrowSource(file)
    with raw.translated_errors(), _open_packed(raw, compression) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _open_packed(raw: ArrowSource, compression: str) -> Any:
    """A stream to read what is packed in a file; of gzip several members and zero bytes behind the last."""
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw)
    import pyarrow as pa  # slow to import, and not needed for other files

    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression)


def _without_first(chunks: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Chunks without their first `count` bytes."""
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:]
        count = max(0, count - len(chunk))
