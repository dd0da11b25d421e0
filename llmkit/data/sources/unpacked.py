"""How large the files of a source are unpacked, and how much of a split lies before one of its records."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from llmkit.data.sources.byte_reader import ArrowSource, ByteReader
from llmkit.data.sources.files import File
from llmkit.data.sources.formats import Format, format_of
from llmkit.data.sources.reader import RawRecord, SourceReader

PROBE_BYTES = 1 << 20
"""Of a packed file that are unpacked to find how well it is packed."""
PROBED = 16
"""Files, evenly spread over a source, that are looked at."""
_ZSTD = 0xFD2FB528


def unpacked_bytes(reader: SourceReader) -> int:
    """Bytes of all that the files of a source hold, of parquet all columns; Arrow files count as they are.

    Packed files are estimated from PROBED of them.
    """
    packed, plain = list[tuple[File, Format]](), 0
    for file in reader.files:
        form = format_of(reader.spec, file.path)
        if form.compression:
            packed.append((file, form))
        elif form.kind != "parquet":
            plain += file.size
    tables = (split.size for split in reader.splits if _form(reader, split.file).kind == "parquet")
    count = min(PROBED, len(packed))
    probed = [packed[k * len(packed) // count] for k in range(count)]
    stored = sum(file.size for file, _ in probed)
    unpacked = sum(unpacked_size(file, form) for file, form in probed)
    return plain + sum(tables) + round(sum(file.size for file, _ in packed) * unpacked / max(1, stored))


def unpacked_size(file: File, form: Format) -> int:
    """Bytes of a packed file unpacked: as its beginning unpacks, or as it says itself where that may be true.

    What gzip says is of the last member alone, modulo 2^32. What zstd says is of the first frame: it is the
    least that there may be, and not of the whole file where the beginning holds more.
    """
    import pyarrow as pa  # slow to import

    with ByteReader(file) as opened:
        count = min(file.size, PROBE_BYTES)
        raw, found = ArrowSource(opened, [(0, count)]), 0
        with contextlib.suppress(pa.ArrowException, OSError):  # where it is cut
            stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), form.compression)
            while chunk := stream.read(1 << 12):  # the last, cut block is lost
                found += len(chunk)
        if count == file.size:
            return found
        estimate = found * file.size / max(1, count)
        if form.compression == "gzip":
            said = int.from_bytes(opened.read_at(max(0, file.size - 4), 4), "little")
            said += max(0, round((estimate - said) / (1 << 32))) << 32
        else:
            said = _frame_content(opened.read_at(0, 18))
            if said >= estimate:
                return said
            said *= said > found
        return said if estimate / 2 < said < estimate * 2 else round(estimate)


def _frame_content(header: bytes) -> int:
    """The size in the header of a zstd frame (RFC 8878, section 3.1.1); 0 where it has none."""
    if len(header) < 6 or int.from_bytes(header[:4], "little") != _ZSTD:
        return 0
    descriptor = header[4]
    is_single = descriptor >> 5 & 1
    begin = 5 + (not is_single) + (0, 1, 2, 4)[descriptor & 3]
    length = (is_single, 2, 4, 8)[descriptor >> 6]
    return int.from_bytes(header[begin : begin + length], "little") + 256 * (length == 2)


def share_before(reader: SourceReader, split: int, record: RawRecord) -> float | None:
    """Share of a split's bytes, or rows, before a record of it; None where that is not known."""
    part, form = reader.splits[split], _form(reader, reader.splits[split].file)
    file = reader.files[part.file]
    if form.kind == "document":
        sizes = [each.size for each in reader.files[part.start : part.end]]
        return sum(sizes[: record.number]) / max(1, sum(sizes))
    if form.kind == "lines" and form.compression is None:
        return (max(record.seek_hint, part.start) - part.start) / part.size
    if form.kind == "lines":
        return min(1.0, record.seek_hint / max(1, unpacked_size(file, form) * part.size / file.size))
    if form.kind == "parquet":
        return record.number / max(1, _rows(file, range(part.start, part.end)))
    return None


def _form(reader: SourceReader, file: int) -> Format:
    return format_of(reader.spec, reader.files[file].path)


def _rows(file: File, groups: Sequence[int]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with ByteReader(file) as opened:
        raw = ArrowSource(opened)
        with raw.translated_errors():
            metadata = pq.read_metadata(pa.PythonFile(raw, mode="r"))
            return sum(metadata.row_group(group).num_rows for group in groups)
