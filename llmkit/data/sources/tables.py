"""Rows of parquet and Arrow files: only the columns that a record needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.config import schema
from llmkit.data.sources.raw_reader import RawReader
from llmkit.data.sources.records import extras_of, fields_of
from llmkit.data.sources.remote import RandomFile
from llmkit.data.sources.urls import is_url
from llmkit.errors import UserError

BATCH_ROWS = 128
BUFFER_BYTES = 1 << 20
"""Read at a time of a column, so that a row group need not be in memory as a whole."""
_ARROW_MAGIC = b"ARROW1"
_STREAM_ENDS = (b"", b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
"""What may follow the last message: nothing, or the mark of the end, now and before Arrow 0.15."""


class Piece(NamedTuple):
    """A part of a table that can be read by itself.

    start, end: row groups of a parquet file; record batches of an Arrow file; bytes of an Arrow stream.
    size: bytes it stands for.
    """

    start: int
    end: int
    size: int


def parquet_pieces(file: RandomFile, spec: schema.Source, place: str) -> list[Piece]:
    """The row groups of a file, sizes being those of all columns unpacked."""
    raw = RawReader(file)
    with raw.faults(), _open_parquet(raw) as parquet:
        _check_columns(parquet.schema_arrow, spec, place, file.name)
        # Not the sizes of single columns: asking for them in a damaged footer ends the process.
        groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
        return [Piece(i, i + 1, group.total_byte_size) for i, group in enumerate(groups) if group.num_rows]


def parquet_rows(
    file: RandomFile, spec: schema.Source, place: str, start: int, end: int, first: int
) -> Iterator[tuple[Any, ...]]:
    """Values of the needed columns of the rows from `first` on, in row groups [start, end)."""
    raw = RawReader(file)
    with raw.faults(), _open_parquet(raw) as parquet:
        columns = _check_columns(parquet.schema_arrow, spec, place, file.name)
        while start < end and first >= (rows := parquet.metadata.row_group(start).num_rows):
            start, first = start + 1, first - rows
        if start < end:
            groups = list(range(start, end))
            batches = parquet.iter_batches(BATCH_ROWS, groups, columns, use_threads=False)
            yield from _rows(batches, spec, columns, first)


def arrow_pieces(file: RandomFile, spec: schema.Source, place: str) -> list[Piece]:
    """The record batches of a file; a remote stream is one piece, since it has no list of them."""
    raw, size = RawReader(file), file.file.size
    with raw.faults():
        is_stream = _is_arrow_stream(file)
        with _open_arrow(raw, is_stream) as reader:
            _check_columns(reader.schema, spec, place, file.name)
            if not is_stream:
                count = reader.num_record_batches
                return [Piece(i, i + 1, size * (i + 1) // count - size * i // count) for i in range(count)]
        return [Piece(0, size, size)] if is_url(file.file.path) else _stream_pieces(file)


def arrow_rows(
    file: RandomFile, spec: schema.Source, place: str, start: int, end: int, first: int
) -> Iterator[tuple[Any, ...]]:
    """Values of the needed columns of the rows from `first` on, in a piece of an Arrow file or stream."""
    raw = RawReader(file)
    with raw.faults():
        is_stream = _is_arrow_stream(file)
        names = pa.ipc.read_schema(pa.PythonFile(raw, mode="r")) if is_stream else _file_schema(raw)
        columns = _check_columns(names, spec, place, file.name)
        # A stream's piece is a stream once the schema, which the file begins with, is put before it.
        parts = [(0, raw.tell()), (max(start, raw.tell()), end)] if is_stream else None
        fields = [names.get_field_index(name) for name in columns]
    raw = RawReader(file, parts)
    with raw.faults(), _open_arrow(raw, is_stream, fields) as reader:
        batches = reader if is_stream else map(reader.get_batch, range(start, end))
        yield from _rows(batches, spec, columns, first)


def _open_parquet(raw: RawReader) -> pq.ParquetFile:
    # With binary_type columns are no dictionaries: of those, the library itself refuses what is no UTF-8.
    return pq.ParquetFile(
        pa.PythonFile(raw, mode="r"), buffer_size=BUFFER_BYTES, pre_buffer=False,
        page_checksum_verification=True, binary_type=pa.large_binary(),
    )  # fmt: skip


def _open_arrow(raw: RawReader, is_stream: bool, fields: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    opened = pa.ipc.open_stream if is_stream else pa.ipc.open_file
    return opened(pa.PythonFile(raw, mode="r"), options=options)


def _file_schema(raw: RawReader) -> pa.Schema:
    with _open_arrow(raw, False) as reader:
        return reader.schema


def _is_arrow_stream(file: RandomFile) -> bool:
    return file.read_at(0, len(_ARROW_MAGIC)) != _ARROW_MAGIC


def _stream_pieces(file: RandomFile) -> list[Piece]:
    """The record batches of a local Arrow stream, found by their headers."""
    pieces: list[Piece] = []
    has_dictionary = False
    # Mapped, what lies between the headers is not read.
    with pa.memory_map(file.file.path) as mapped:
        messages = pa.ipc.MessageReader.open_stream(mapped)
        messages.read_next_message()  # the schema
        start, end = 0, mapped.tell()
        for message in messages:
            start, end = end if pieces else 0, mapped.tell()
            pieces.append(Piece(start, end, end - start))
            has_dictionary = has_dictionary or message.type != "record batch"  # which later batches need
    if file.read_at(end, 9) not in _STREAM_ENDS:
        raise pa.ArrowInvalid(f"the stream ends at byte {end}, the file does not")
    return [Piece(0, file.file.size, file.file.size)] if has_dictionary else pieces


def _rows(
    batches: Iterable[pa.RecordBatch], spec: schema.Source, columns: list[str], first: int
) -> Iterator[tuple[Any, ...]]:
    wanted = [*fields_of(spec).values(), *extras_of(spec)]
    for batch in batches:
        if first < batch.num_rows:
            absent = [None] * (batch.num_rows - first)
            given = (_values(batch.column(n).slice(first)) if n in columns else absent for n in wanted)
            yield from zip(*given, strict=True)
        first = max(0, first - batch.num_rows)


def _values(column: pa.Array) -> list[Any]:
    """Python values: text as str, or, where some of it is no UTF-8, as bytes; lists of numbers as arrays."""
    try:
        # Otherwise Arrow trusts the offsets in a file, even where they lead out of its memory.
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error):
            raise
        column = column.cast(_with_bytes(column.type))
        column.validate(full=True)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if _is_list(column.type) and pa.types.is_integer(column.type.value_type):
        return [_numbers(row.values) if row.is_valid else None for row in column]
    return column.to_pylist()


def _numbers(values: pa.Array) -> np.ndarray | list[int | None]:
    if values.null_count:
        return values.to_pylist()
    return values.to_numpy(zero_copy_only=False).astype(np.int64)


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes for text; dictionaries stay, so that nothing is looked up before a check."""
    if _is_text(kind):
        return pa.large_binary()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _with_bytes(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):
        return _with_bytes(kind.storage_type)
    if _is_list(kind):
        return pa.large_list(_with_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _with_bytes(field.type)) for field in kind])
    return kind


def _check_columns(names: pa.Schema, spec: schema.Source, place: str, file: str) -> list[str]:
    """The columns that a record needs; raises UserError where one is missing, there twice or unfit."""
    wanted = fields_of(spec)
    for setting, column in wanted.items():
        if column not in names.names:
            known = ", ".join(names.names) or "none"
            raise UserError(f"{place}.{setting}: {file} has no column {column!r}; its columns: {known}")
        if (count := names.names.count(column)) > 1:
            raise UserError(f"{place}.{setting}: {file} has {count} columns {column!r}; rename all but one")
        kind = _plain(names.field(column).type)
        if spec.record == "chat":
            fits, what = _is_list(kind), "a list of messages"
        elif spec.record == "ids":
            fits = _is_list(kind) and pa.types.is_integer(_plain(kind.value_type))
            what = "a list of whole numbers"
        elif spec.record == "preference":
            fits, what = _is_text(kind) or _is_list(kind), "text or a list of messages"
        else:
            fits, what = _is_text(kind) or pa.types.is_null(kind), "text"
        if not fits:
            raise UserError(f"{place}.{setting}: column {column!r} of {file} is {kind!s:.200}, not {what}")
    extras = [name for name in extras_of(spec) if name in names.names]
    for name in extras:
        if (count := names.names.count(name)) > 1:
            raise UserError(f"{place}: {file} has {count} columns {name!r}; rename all but one")
    return [*wanted.values(), *extras]


def _plain(kind: pa.DataType) -> pa.DataType:
    """What the values of a dictionary, or of a type that an extension names, are stored as."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    return _plain(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    tests = (types.is_string, types.is_large_string, types.is_string_view)
    return any(test(kind) for test in (*tests, types.is_binary, types.is_large_binary, types.is_binary_view))


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
