"""Rows of parquet and Arrow files: only the columns that a record needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmkit.config import schema
from llmkit.data.sources.byte_reader import ArrowSource, ByteReader
from llmkit.data.sources.extract import extras_of, fields_of
from llmkit.data.sources.urls import is_url
from llmkit.errors import UserError

BATCH_ROWS = 128
BUFFER_BYTES = 1 << 20
"""Read at a time of a column, so that a row group need not be in memory as a whole."""
_ARROW_MAGIC = b"ARROW1"
_STREAM_ENDS = (b"", b"\xff\xff\xff\xff\0\0\0\0", b"\0\0\0\0")
"""What may follow the last message: nothing, or the mark of the end, now and before Arrow 0.15."""
_TEXTS = frozenset(
    {pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view()}
)
_LISTS = (pa.ListType, pa.LargeListType, pa.FixedSizeListType)


def groups_of(file: ByteReader, kind: str, spec: schema.Source, setting: str) -> list[tuple[int, int, int]]:
    """Start, end and size in bytes of each part of a table that can be read by itself.

    Of parquet row groups, sizes being those of all columns unpacked; of an Arrow file record batches; of an
    Arrow stream the bytes of record batches, or all where it is remote, since it has no list of them.
    """
    raw, size = ArrowSource(file), file.file.size
    with raw.translated_errors():
        if kind == "parquet":
            with _open_parquet(raw) as table:
                _check_columns(table.schema_arrow, spec, setting, file.name)
                # Not the sizes of single columns: asking for them in a damaged footer ends the process.
                groups = [table.metadata.row_group(i) for i in range(table.metadata.num_row_groups)]
                return [(i, i + 1, group.total_byte_size) for i, group in enumerate(groups) if group.num_rows]
        with _open_arrow(raw, is_stream := _is_arrow_stream(file)) as reader:
            _check_columns(reader.schema, spec, setting, file.name)
            if not is_stream:
                count = reader.num_record_batches
                return [(i, i + 1, size * (i + 1) // count - size * i // count) for i in range(count)]
        return [(0, size, size)] if is_url(file.file.path) else _stream_groups(file)


def rows_of(
    file: ByteReader, kind: str, spec: schema.Source, setting: str, start: int, end: int, first: int
) -> Iterator[tuple[Any, ...]]:
    """Values of `fields_of` and `extras_of` in the rows from `first` on of the groups [start, end).

    Of a table with the columns id and text: ("text of row 1",), ("text of row 2",), ... with `first` 1.
    """
    raw = ArrowSource(file)
    with raw.translated_errors():
        if kind == "parquet":
            with _open_parquet(raw) as table:
                columns = _check_columns(table.schema_arrow, spec, setting, file.name)
                while start < end and first >= (rows := table.metadata.row_group(start).num_rows):
                    start, first = start + 1, first - rows
                if start < end:
                    groups = list(range(start, end))
                    batches = table.iter_batches(BATCH_ROWS, groups, columns, use_threads=False)
                    yield from _rows(batches, spec, columns, first)
            return
        is_stream = _is_arrow_stream(file)
        names = pa.ipc.read_schema(pa.PythonFile(raw, mode="r")) if is_stream else _file_schema(raw)
        columns = _check_columns(names, spec, setting, file.name)
        # A stream's group is a stream once the schema, which the file begins with, is put before it.
        ranges = [(0, raw.tell()), (max(start, raw.tell()), end)] if is_stream else None
        fields = [names.get_field_index(name) for name in columns]
    raw = ArrowSource(file, ranges)
    with raw.translated_errors(), _open_arrow(raw, is_stream, fields) as reader:
        batches = reader if is_stream else map(reader.get_batch, range(start, end))
        yield from _rows(batches, spec, columns, first)


def _open_parquet(raw: ArrowSource) -> pq.ParquetFile:
    # With binary_type columns are no dictionaries: of those, the library itself refuses what is no UTF-8.
    return pq.ParquetFile(
        pa.PythonFile(raw, mode="r"), buffer_size=BUFFER_BYTES, pre_buffer=False,
        page_checksum_verification=True, binary_type=pa.large_binary(),
    )  # fmt: skip


def _open_arrow(raw: ArrowSource, is_stream: bool, fields: list[int] | None = None) -> Any:
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    opened = pa.ipc.open_stream if is_stream else pa.ipc.open_file
    return opened(pa.PythonFile(raw, mode="r"), options=options)


def _file_schema(raw: ArrowSource) -> pa.Schema:
    with _open_arrow(raw, False) as reader:
        return reader.schema


def _is_arrow_stream(file: ByteReader) -> bool:
    return file.read_at(0, len(_ARROW_MAGIC)) != _ARROW_MAGIC


def _stream_groups(file: ByteReader) -> list[tuple[int, int, int]]:
    """The record batches of a local Arrow stream, found by their headers."""
    groups: list[tuple[int, int, int]] = []
    has_dictionary = False
    # Mapped, what lies between the headers is not read.
    with pa.memory_map(file.file.path) as mapped:
        messages = pa.ipc.MessageReader.open_stream(mapped)
        messages.read_next_message()  # the schema
        start, end = 0, mapped.tell()
        for message in messages:
            start, end = end if groups else 0, mapped.tell()
            groups.append((start, end, end - start))
            has_dictionary = has_dictionary or message.type != "record batch"  # which later batches need
    if file.read_at(end, 9) not in _STREAM_ENDS:
        raise pa.ArrowInvalid(f"the stream ends at byte {end}, the file does not")
    return [(0, file.file.size, file.file.size)] if has_dictionary else groups


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
    """Python values: text as str, or, where some of it is no UTF-8, as bytes; lists of integers as arrays."""
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
    if isinstance(column.type, _LISTS) and pa.types.is_integer(column.type.value_type):
        return [_integers(row.values) if row.is_valid else None for row in column]
    return column.to_pylist()


def _integers(values: pa.Array) -> np.ndarray | list[int | None]:
    if values.null_count:
        return values.to_pylist()
    return values.to_numpy(zero_copy_only=False).astype(np.int64)


def _with_bytes(kind: pa.DataType) -> pa.DataType:
    """The same type with bytes for text; dictionaries stay, so that nothing is looked up before a check."""
    if kind in _TEXTS:
        return pa.large_binary()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _with_bytes(kind.value_type))
    if isinstance(kind, pa.BaseExtensionType):
        return _with_bytes(kind.storage_type)
    if isinstance(kind, _LISTS):
        return pa.large_list(_with_bytes(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _with_bytes(field.type)) for field in kind])
    return kind


def _stored(kind: pa.DataType) -> pa.DataType:
    """What the values of a dictionary, or of a type that an extension names, are stored as."""
    if pa.types.is_dictionary(kind):
        return _stored(kind.value_type)
    return _stored(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


_FITTING: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    "chat": (lambda kind: isinstance(kind, _LISTS), "a list of messages"),
    "ids": (
        lambda kind: isinstance(kind, _LISTS) and pa.types.is_integer(_stored(kind.value_type)),
        "a list of whole numbers",
    ),
    "preference": (lambda kind: kind in _TEXTS or isinstance(kind, _LISTS), "text or a list of messages"),
}
"""By kind of record: which columns fit, and what they hold; of other kinds those of text do."""


def _check_columns(names: pa.Schema, spec: schema.Source, setting: str, file: str) -> list[str]:
    """The columns that a record needs; raises UserError where one is missing, there twice or unfit."""
    fits, what = _FITTING.get(spec.record, (lambda kind: kind in _TEXTS or pa.types.is_null(kind), "text"))
    extras = [name for name in extras_of(spec) if name in names.names]
    needed = fields_of(spec)
    for key, column in needed.items():
        where = f"{setting}.{key}"
        if column not in names.names:
            has = ", ".join(names.names) or "none"
            raise UserError(f"{where}: {file} has no column {column!r}; its columns: {has}")
        _check_single(names, column, where, file)
        if not fits(kind := _stored(names.field(column).type)):
            raise UserError(f"{where}: column {column!r} of {file} is {kind!s:.200}, not {what}")
    for column in extras:
        _check_single(names, column, setting, file)
    return [*needed.values(), *extras]


def _check_single(names: pa.Schema, column: str, where: str, file: str) -> None:
    if (count := names.names.count(column)) > 1:
        raise UserError(f"{where}: {file} has {count} columns {column!r}; rename all but one")
