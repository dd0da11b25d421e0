"""Files cut by separators: the lines of a jsonl file, the documents of a text file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llmkit.data.sources.formats import Format
from llmkit.data.sources.raw_reader import RawReader
from llmkit.data.sources.remote import RandomFile

CHUNK_BYTES = 256 << 10


def parts_of(
    file: RandomFile, form: Format, start: int, end: int, first: int = 0, hint: int = 0
) -> Iterator[tuple[int, int, bytes]]:
    """Parts of a unit from part `first` on: number, hint and content, without the separator.

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
    for offset, part in split(chunks, form.separator):
        place = begin + offset
        if edge.place is not None and place > edge.place:
            return
        if start > 0 and place <= unit:
            continue  # begins in the unit before
        if number >= first:
            yield number, place, part
        number += 1


def split(chunks: Iterable[bytes], separator: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and content of the parts between separators; nothing after the last one is no part."""
    offset, tail = 0, b""
    waiting: list[bytes] = []
    size = 0
    for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size < len(tail):  # a part of many chunks: join them rarely
            continue
        *parts, tail = b"".join((tail, *waiting)).split(separator)
        waiting, size = [], 0
        for part in parts:
            yield offset, part
            offset += len(part) + len(separator)
    *parts, tail = b"".join((tail, *waiting)).split(separator)
    for part in parts:
        yield offset, part
        offset += len(part) + len(separator)
    if tail:
        yield offset, tail


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
        place = low + found
    return place


def whole(file: RandomFile, form: Format) -> bytes:
    """All of a file, unpacked."""
    if form.compression is None:
        return file.read_at(0, file.file.size)
    return b"".join(_unpacked(file, 0, file.file.size, form.compression, _Edge(None)))


class _Edge:
    """Where a unit ends; of a compressed one known only when it has been unpacked."""

    def __init__(self, place: int | None) -> None:
        self.place = place


def _chunks(file: RandomFile, start: int, end: int) -> Iterator[bytes]:
    """The file from `start` on, in smaller pieces behind `end`, where only the last part's rest is needed."""
    while start < file.file.size:
        count = min(CHUNK_BYTES, end - start) if start < end else CHUNK_BYTES // 8
        chunk = file.read_at(start, count)
        yield chunk
        start += len(chunk)


def _unpacked(file: RandomFile, start: int, end: int, compression: str, edge: _Edge) -> Iterator[bytes]:
    import pyarrow as pa  # slow to import, and not needed for other files

    size = 0
    for low, high in ((start, end), (end, file.file.size)):
        if low == high:
            continue
        raw = RawReader(file, [(low, high)])
        with (
            raw.faults(),
            pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression) as stream,
        ):
            while chunk := stream.read(CHUNK_BYTES):
                size += len(chunk)
                yield chunk
        if edge.place is None:
            edge.place = size


def _dropped(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """Chunks without their first `count` bytes."""
    for chunk in chunks:
        if count < len(chunk):
            yield chunk[count:]
        count = max(0, count - len(chunk))


def is_json_array(file: RandomFile) -> bool:
    """Whether a file holds one JSON array instead of an object a line."""
    return file.read_at(0, 4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
