"""Files cut into splits, which one process or lane each can read by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import NamedTuple

from llmkit.config import schema
from llmkit.data.sources.byte_reader import ByteReader
from llmkit.data.sources.files import File
from llmkit.data.sources.formats import format_of, suffixes_of
from llmkit.data.sources.text_files import is_json_array
from llmkit.data.sources.urls import redact_url
from llmkit.errors import RunFault, UserError


class Split(NamedTuple):
    """A range of a source that is read by itself; all of them together are the source, in order.

    file: index of the file. start, end: what of it,

    - where a file is a document: indices of files, [start, end), with file = start;
    - jsonl and text with a separator: bytes; the split has the records before which a separator ends in
      (start, end], and the file's first one if start is 0. So a record that begins in a split and ends in the
      next one is this split's, and so is one that begins exactly at `end`;
    - the same compressed: all bytes, (0, size);
    - parquet: row groups; Arrow: record batches, of a stream its bytes.

    size: bytes that it stands for, for balance and progress; of parquet all columns unpacked.
    """

    file: int
    start: int
    end: int
    size: int


def split_files(
    spec: schema.Source, files: Sequence[File], split_bytes: int, setting: str = ""
) -> list[Split]:
    """Splits of about `split_bytes`, in order; larger ones where a file cannot be cut further.

    The same files give the same splits. setting: key of the source's settings, for messages. Opens the files
    of which it needs more than the size; raises UserError where one is damaged or lacks a column.

    >>> split_files(schema.Source(type="jsonl"), [File("a.jsonl", 900, "")], 500)
    [Split(file=0, start=0, end=450, size=450), Split(file=0, start=450, end=900, size=450)]
    """
    if files and format_of(spec, files[0].path).kind == "document":
        return list(_files_together(files, split_bytes))

    def split(index: int) -> list[Split]:
        try:
            ranges = _ranges(spec, files[index], split_bytes, setting or f"the {spec.type} source")
        except RunFault as fault:
            raise UserError(str(fault)) from fault
        return [Split(index, *each) for each in ranges]

    with ThreadPoolExecutor(16) as pool:  # each remote file takes a request
        return list(chain.from_iterable(pool.map(split, range(len(files)))))


def _files_together(files: Sequence[File], split_bytes: int) -> Iterator[Split]:
    """Neighbouring files, as many as have `split_bytes` together; at least one."""
    start = size = 0
    for index, file in enumerate(files):
        if index > start and size + file.size > split_bytes:
            yield Split(start, start, index, size)
            start, size = index, 0
        size += file.size
    if start < len(files):
        yield Split(start, start, len(files), size)


def _ranges(
    spec: schema.Source, file: File, split_bytes: int, setting: str
) -> Iterable[tuple[int, int, int]]:
    """Start, end and size of each split of a file."""
    form, size = format_of(spec, file.path), file.size
    if form.kind in ("parquet", "arrow"):
        from llmkit.data.sources.tables import groups_of  # imports Arrow, which other files do not need

        if not size:
            raise UserError(f"{redact_url(file.path)}: is empty, which no {form.kind} file is")
        with ByteReader(file) as opened:
            return list(_merged(groups_of(opened, form.kind, spec, setting), split_bytes))
    if form.compression or form.kind == "records":
        return [(0, size, size)] if size else []
    if form.is_json and suffixes_of(file.path)[0] == ".json":
        with ByteReader(file) as opened:
            if is_json_array(opened):
                what = "holds one JSON array; only a record a line is read, as `jq -c '.[]'` writes it"
                raise UserError(f"{opened.name}: {what}")
    count = -(-size // max(1, split_bytes))
    edges = [size * i // count for i in range(count + 1)] if size else []
    return [(start, end, end - start) for start, end in pairwise(edges)]


def _merged(groups: Sequence[tuple[int, int, int]], split_bytes: int) -> Iterator[tuple[int, int, int]]:
    """Neighbouring groups of a table together until they have `split_bytes`."""
    first, size = 0, 0
    for index, (_, end, group_size) in enumerate(groups):
        size += group_size
        if size >= split_bytes or index == len(groups) - 1:
            yield groups[first][0], end, size
            first, size = index + 1, 0
