"""The records of a source, unit by unit, from any candidate on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llmkit.config import schema
from llmkit.data.sources.custom import CustomSpec
from llmkit.data.sources.formats import Format, format_of
from llmkit.data.sources.lines import parts_of, whole
from llmkit.data.sources.listing import File
from llmkit.data.sources.records import EMPTY, TOO_LONG, Extracted, Extractor, LeftOut, Policy, Record
from llmkit.data.sources.remote import RandomFile
from llmkit.data.sources.units import Unit
from llmkit.data.sources.urls import is_url, shown
from llmkit.errors import UserError


class Candidate(NamedTuple):
    """What a unit has at a number.

    number: counted within the unit before anything of it is decoded. hint: for `SourceReader.read`, to come
    back here fast. record: or why there is none. mended: U+FFFD stands in it for bytes that are no UTF-8.
    """

    number: int
    hint: int
    record: Record | LeftOut
    mended: bool


class SourceReader:
    """Reads the units of one source; can be sent to other processes.

    spec: the source's settings. name, place: the source's name and the key of its settings, for messages.
    errors: what to do with a bad candidate: leave it out, put U+FFFD for what is no UTF-8, or raise. An empty
    one is nothing to lose: all three leave it out. files, units: from list_files and cut_into_units.
    """

    def __init__(
        self,
        spec: schema.Source,
        name: str,
        place: str,
        errors: Policy,
        files: Sequence[File],
        units: Sequence[Unit],
    ) -> None:
        self.spec, self.name, self.setting, self.errors = spec, name, place, errors
        self.files, self.units = tuple(files), tuple(units)

    def read(self, unit: int, first: int = 0, hint: int = 0) -> Iterator[Candidate]:
        """Candidates `first`, `first` + 1, ... of a unit, in order.

        hint: that of the candidate `first`, if it was read before, else 0.
        Raises RunFault where a file cannot be read, is damaged or has changed, and UserError at a bad
        candidate if `errors` says so.
        """
        part = self.units[unit]
        extractor = Extractor(self.spec, mend=self.errors == "replace")
        form = format_of(self.spec, self.files[part.file].path)
        for number, place, (record, mended) in self._extract(part, form, extractor, first, hint):
            if self.errors == "raise" and isinstance(record, LeftOut) and record.reason != EMPTY:
                where = self.place(unit, number)
                raise UserError(
                    f"{where}: {record.detail}; mend the file, or set data.errors to skip or replace"
                )
            yield Candidate(number, place, record, mended)

    def _extract(
        self, unit: Unit, form: Format, extractor: Extractor, first: int, hint: int
    ) -> Iterator[tuple[int, int, Extracted]]:
        """Number, hint and record."""
        if isinstance(self.spec, CustomSpec):
            records = self.spec.extract(self.files[unit.file].path, first, extractor)
            yield from ((number, 0, record) for number, record in enumerate(records, first))
        elif form.kind == "document":
            for number in range(first, unit.end - unit.start):
                with RandomFile(self.files[unit.start + number]) as file:
                    content = whole(file, format_of(self.spec, file.file.path))
                yield number, 0, self._too_long(form) if content is None else extractor.from_text(content)
        elif form.kind == "lines":
            extract = extractor.from_json if form.is_json else extractor.from_text
            with RandomFile(self.files[unit.file], until=unit.end) as file:
                for number, place, part in parts_of(file, form, unit.start, unit.end, first, hint):
                    yield number, place, self._too_long(form) if part is None else extract(part)
        else:
            with RandomFile(self.files[unit.file]) as file:
                for number, values in enumerate(self._rows(file, form, unit.start, unit.end, first), first):
                    yield number, 0, extractor.from_values(values)

    def _too_long(self, form: Format) -> Extracted:
        what = "the line" if form.separator == b"\n" else "the document"
        remedy = "" if self.spec.type != "text" else f"; {self.setting}.separator cuts a text into documents"
        return Extracted(LeftOut(TOO_LONG, f"{what} is {TOO_LONG}{remedy}"))

    def _rows(
        self, file: RandomFile, form: Format, start: int, end: int, first: int
    ) -> Iterator[tuple[Any, ...]]:
        from llmkit.data.sources import tables  # imports Arrow, which other files do not need

        rows_of = tables.parquet_rows if form.kind == "parquet" else tables.arrow_rows
        return rows_of(file, self.spec, self.setting, start, end, first)

    def place(self, unit: int, number: int) -> str:
        """Where a candidate is, for messages: "file.jsonl:17", "file.parquet, row 17".

        Reads the file up to the unit where it is local; of a remote file it tells the place in the unit.
        """
        part = self.units[unit]
        file = self.files[part.file]
        form = format_of(self.spec, file.path)
        name = shown(file.path)
        if form.kind == "records":
            return f"{name}, record {number + 1}"
        if form.kind == "document":
            return shown(self.files[part.start + number].path)
        if part.start > 0 and is_url(file.path):
            what = {"lines": "byte", "parquet": "row group", "arrow": "record batch"}[form.kind]
            return f"{name}, number {number + 1} from {what} {part.start} on"
        count = self._before(part, file, form) + number + 1
        if form.kind == "lines":
            return f"{name}:{count}" if form.separator == b"\n" else f"{name}, document {count}"
        return f"{name}, row {count}"

    def _before(self, unit: Unit, file: File, form: Format) -> int:
        """Candidates of a file before a unit."""
        if unit.start == 0:
            return 0
        with RandomFile(file) as opened:
            if form.kind == "lines":
                return sum(1 for _ in parts_of(opened, form, 0, unit.start))
            return sum(1 for _ in self._rows(opened, form, 0, unit.start, 0))
