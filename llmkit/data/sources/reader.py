"""The records of a source, split by split, from any record on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llmkit.config import schema
from llmkit.data.sources.byte_reader import ByteReader
from llmkit.data.sources.custom import CustomSpec
from llmkit.data.sources.extract import Extracted, Extractor
from llmkit.data.sources.files import File
from llmkit.data.sources.formats import Format, format_of
from llmkit.data.sources.records import EMPTY, TOO_LONG, Policy, Record, Skipped
from llmkit.data.sources.splits import Split
from llmkit.data.sources.text_files import read_all, read_records
from llmkit.data.sources.urls import is_url, redact_url
from llmkit.errors import UserError


class RawRecord(NamedTuple):
    """A record of a split, not yet tokenized.

    number: in the split, from 0 on, counted before anything of it is decoded. seek_hint: for
    `SourceReader.read`, to come back here fast. record: or why there is none. repaired: U+FFFD stands in it
    for bytes that are no UTF-8.
    """

    number: int
    seek_hint: int
    record: Record | Skipped
    repaired: bool


class SkippedAt(NamedTuple):
    """A record that cannot be used. location: "file.jsonl:17", as in messages."""

    location: str
    skipped: Skipped


@dataclass(frozen=True, eq=False)
class SourceReader:
    """Reads the splits of one source; can be sent to other processes.

    spec: the source's settings. name, setting: the source's name and the key of its settings, for messages.
    errors: what to do with a record that cannot be used: skip it, put U+FFFD for what is no UTF-8, or raise.
    An empty one is nothing to lose: all three skip it. files, splits: from list_files and split_files.
    """

    spec: schema.Source
    name: str
    setting: str
    errors: Policy
    files: Sequence[File]
    splits: Sequence[Split]
    _before: dict[Split, int] = field(default_factory=dict, init=False, repr=False)
    """Records of its file before a split, of those that were asked for."""

    def read(self, split: int, first: int = 0, seek_hint: int = 0) -> Iterator[RawRecord]:
        """Records `first`, `first` + 1, ... of a split, in order.

        seek_hint: that of the record `first`, if it was read before, else 0.
        Raises RunFault where a file cannot be read, is damaged or has changed, and UserError at a record that
        cannot be used if `errors` says so.
        """
        for index, hint, (record, repaired) in self._extract(self.splits[split], first, seek_hint):
            if self.errors == "raise" and isinstance(record, Skipped) and record.reason != EMPTY:
                where = self.location(split, index)
                raise UserError(
                    f"{where}: {record.detail}; mend the file, or set data.errors to skip or replace"
                )
            yield RawRecord(index, hint, record, repaired)

    def skipped(self) -> Iterator[SkippedAt]:
        """The records of the source that cannot be used, in order; reads it as a whole, tokenizes nothing."""
        reader = dataclasses.replace(self, errors="skip") if self.errors == "raise" else self
        before, file = 0, None
        for index, split in enumerate(self.splits):
            before, file = before if split.file == file else 0, split.file
            count = 0
            for raw in reader.read(index):
                count += 1
                if isinstance(raw.record, Skipped):
                    yield SkippedAt(self._location(split, raw.number, before), raw.record)
            before += count

    def location(self, split: int, index: int) -> str:
        """Where a record is, for messages: "file.jsonl:17", "file.parquet, row 17".

        Reads the file up to the split where it is local; of a remote file the location is one in the split.
        """
        where = self.splits[split]
        file = self.files[where.file]
        form = format_of(self.spec, file.path)
        if form.kind in ("lines", "parquet", "arrow") and where.start > 0:
            if is_url(file.path):
                what = {"lines": "byte", "parquet": "row group", "arrow": "record batch"}[form.kind]
                return f"{redact_url(file.path)}, number {index + 1} from {what} {where.start} on"
            return self._location(where, index, self._records_before(where))
        return self._location(where, index, 0)

    def _records_before(self, split: Split) -> int:
        """Records of the file before a split; counted from the nearest split that is known."""
        file = self.files[split.file]
        form = format_of(self.spec, file.path)
        if split not in self._before:
            known = {
                each.start: count
                for each, count in self._before.items()
                if each.file == split.file and each.start < split.start
            }
            first = max(known, default=0)
            with ByteReader(file) as opened:
                if form.kind == "lines":
                    count = sum(1 for _ in read_records(opened, form, first, split.start))
                else:
                    count = sum(1 for _ in self._rows(opened, form, first, split.start, 0))
            self._before[split] = known.get(first, 0) + count
        return self._before[split]

    def _location(self, split: Split, index: int, before: int) -> str:
        """before: records of the file before the split."""
        form = format_of(self.spec, self.files[split.file].path)
        if form.kind == "document":
            return redact_url(self.files[split.start + index].path)
        name, number = redact_url(self.files[split.file].path), before + index + 1
        if form.separator == b"\n":
            return f"{name}:{number}"
        what = {"lines": "document", "records": "record"}.get(form.kind, "row")
        return f"{name}, {what} {number}"

    def _extract(self, split: Split, first: int, seek_hint: int) -> Iterator[tuple[int, int, Extracted]]:
        """Index, seek hint and record."""
        extractor = Extractor(self.spec, repair=self.errors == "replace")
        file = self.files[split.file]
        form = format_of(self.spec, file.path)
        if isinstance(self.spec, CustomSpec):
            for index, found in enumerate(self.spec.extract(file.path, first, extractor), first):
                yield index, 0, found
        elif form.kind == "document":
            for index in range(first, split.end - split.start):
                with ByteReader(self.files[split.start + index]) as opened:
                    content = read_all(opened, format_of(self.spec, opened.file.path))
                yield index, 0, self._too_long(form) if content is None else extractor.from_text(content)
        elif form.kind == "lines":
            extract = extractor.from_json if form.is_json else extractor.from_text
            with ByteReader(file, until=split.end) as opened:
                for index, hint, content in read_records(
                    opened, form, split.start, split.end, first, seek_hint
                ):
                    yield index, hint, self._too_long(form) if content is None else extract(content)
        else:
            with ByteReader(file) as opened:
                rows = self._rows(opened, form, split.start, split.end, first)
                for index, values in enumerate(rows, first):
                    yield index, 0, extractor.from_values(values)

    def _too_long(self, form: Format) -> Extracted:
        what = "the line" if form.separator == b"\n" else "the document"
        remedy = "" if self.spec.type != "text" else f"; {self.setting}.separator cuts a text into documents"
        return Skipped(TOO_LONG, f"{what} is {TOO_LONG}{remedy}"), False

    def _rows(
        self, file: ByteReader, form: Format, start: int, end: int, first: int
    ) -> Iterator[tuple[Any, ...]]:
        from llmkit.data.sources.tables import rows_of  # imports Arrow, which other files do not need

        return rows_of(file, form.kind, self.spec, self.setting, start, end, first)
