"""Files cut into units, which can be read by themselves: by one process or one lane each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from typing import NamedTuple

from llmkit.config import schema
from llmkit.data.sources.formats import Format, format_of, suffixes_of
from llmkit.data.sources.lines import is_json_array
from llmkit.data.sources.listing import File
from llmkit.data.sources.remote import RandomFile
from llmkit.data.sources.urls import is_url, shown
from llmkit.data.sources.zstd_frames import frame_ends
from llmkit.errors import RunFault, UserError


class Unit(NamedTuple):
    """A part of a source that is read by itself; all of them together are the source, in order.

    file: number of the file among the source's. start, end: what of it,

    - where a file is a document: numbers of files, [start, end), with file = start;
    - jsonl and text with a separator: bytes; the unit has the parts before which a separator ends in
      (start, end], and the file's first one if start is 0. So a part that begins in a unit and ends in the
      next one is this unit's, and so is one that begins exactly at `end`;
    - the same compressed: (0, size), or packed bytes of whole zstd frames (the rule is that of the unpacked);
    - parquet: numbers of row groups; Arrow: numbers of record batches, of a stream its bytes.

    size: bytes that it stands for, for balance and progress; of parquet all columns unpacked.
    """

    file: int
    start: int
    end: int
    size: int


def cut_into_units(
    spec: schema.Source, files: Sequence[File], unit_bytes: int, place: str = ""
) -> list[Unit]:
    """Units of about `unit_bytes`, in order; larger ones where a file cannot be cut further.

    The same files give the same units. place: key of the source's settings, for messages. Opens the files of
    which it needs to know more than the size; raises UserError where one is damaged or lacks a column.
    """
    formats = [format_of(spec, file.path) for file in files]
    if formats and formats[0].kind == "document":
        return list(_grouped_files(files, unit_bytes))
    place = place or f"the {spec.type} source"

    def cut(number: int) -> list[Unit]:
        try:
            return _cut(spec, files[number], formats[number], unit_bytes, place, number)
        except RunFault as fault:
            raise UserError(str(fault)) from fault

    with ThreadPoolExecutor(16) as pool:  # of remote files each asks a server
        return list(chain.from_iterable(pool.map(cut, range(len(files)))))


def _grouped_files(files: Sequence[File], unit_bytes: int) -> Iterator[Unit]:
    start = size = 0
    for number, file in enumerate(files):
        if number > start and size + file.size > unit_bytes:
            yield Unit(start, start, number, size)
            start, size = number, 0
        size += file.size
    if start < len(files):
        yield Unit(start, start, len(files), size)


def _cut(
    spec: schema.Source, file: File, form: Format, unit_bytes: int, place: str, number: int
) -> list[Unit]:
    size = file.size
    if not size:
        if form.kind in ("parquet", "arrow"):
            raise UserError(f"{shown(file.path)}: is empty, which no {form.kind} file is")
        return []
    if form.kind in ("parquet", "arrow"):
        from llmkit.data.sources import tables

        with RandomFile(file) as opened:
            pieces = getattr(tables, f"{form.kind}_pieces")(opened, spec, place)
        return list(_grouped(number, pieces, unit_bytes))
    if form.compression == "zstd" and len(form.separator) == 1 and not is_url(file.path):
        with RandomFile(file) as opened:
            ends = frame_ends(opened)
        if not ends:  # nothing but skippable frames
            return []
        starts = [0, *ends[:-1]]
        return list(_grouped(number, [(s, e, e - s) for s, e in zip(starts, ends, strict=True)], unit_bytes))
    if form.compression or form.kind == "records":
        return [Unit(number, 0, size, size)]
    if form.is_json and suffixes_of(file.path)[0] == ".json":
        with RandomFile(file) as opened:
            if is_json_array(opened):
                what = "holds one JSON array; only a record a line is read, as `jq -c '.[]'` writes it"
                raise UserError(f"{opened.name}: {what}")
    count = -(-size // max(1, unit_bytes))
    edges = [size * i // count for i in range(count + 1)]
    return [Unit(number, start, end, end - start) for start, end in pairwise(edges)]


def _grouped(file: int, pieces: Sequence[tuple[int, int, int]], unit_bytes: int) -> Iterator[Unit]:
    """Neighbouring pieces together until they have `unit_bytes`."""
    first, size = 0, 0
    for number, piece in enumerate(pieces):
        size += piece[2]
        if size >= unit_bytes or number == len(pieces) - 1:
            yield Unit(file, pieces[first][0], piece[1], size)
            first, size = number + 1, 0
