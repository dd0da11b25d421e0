"""Tokenizes sources into shards: a source of its own folder, in parts, by several processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from llmkit.config import schema
from llmkit.cores import available_cores
from llmkit.data.building.assemble import SplitWriter, Written, assemble
from llmkit.data.building.cache import Report, content_key, make_once
from llmkit.data.building.opened import OpenedSource
from llmkit.data.building.parts import Group, PartMaker, group_units, part_bytes_of
from llmkit.data.building.pool import make_parts
from llmkit.data.building.progress import Progress
from llmkit.data.live.heldout import heldout_records
from llmkit.data.prepared import BUILD_VERSION, SourceRecord, shown_size
from llmkit.data.shards.format import stored_dtype, token_dtype
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import skipped_summary
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import sync_folder, write_sealed

SMALL = 8 << 20
"""Bytes of a source up to which starting worker processes would cost more than it brings."""


class Builder:
    """Builds the sources of some settings.

    workers: processes at most; None = as many as there are cores. check: raises what is wrong with any of the
    sources; called before one is built.
    """

    def __init__(
        self,
        config: schema.Data,
        tokenizer: Tokenizer,
        encoder: RecordEncoder,
        report: Report,
        workers: int | None,
        check: Callable[[], None],
    ) -> None:
        self._config, self._tokenizer, self._encoder = config, tokenizer, encoder
        self._report, self._workers, self._check = report, workers, check

    def build(self, source: OpenedSource) -> Path:
        """The folder of a source that is tokenized before training; what is not there is built.

        Raises UserError if it has no document, or holds out all of them.
        """
        folder = self._folder(source, {"part_bytes": part_bytes_of(source.files), **self._packing()})
        make_once(folder, lambda workplace: self._fill(source, workplace), self._report)
        return folder

    def build_heldout(self, source: OpenedSource, reader: SourceReader) -> Path:
        """The folder with the held-out documents of a live source; what is not there is built."""
        units: list[JsonValue] = [list(unit) for unit in reader.splits]
        folder = self._folder(source, {"live": units})
        make_once(folder, lambda workplace: self._fill_heldout(source, reader, workplace), self._report)
        return folder

    def _folder(self, source: OpenedSource, described: dict[str, JsonValue]) -> Path:
        everything: dict[str, JsonValue] = {
            "version": BUILD_VERSION,
            "source": source.described(),
            "encoder": self._encoder.key_of(source.spec.record),
            "heldout_every": self._config.heldout_every,
            **described,
        }
        return Path(self._config.cache_dir) / f"{source.name}-{content_key(everything)}"

    def _packing(self) -> dict[str, JsonValue]:
        config = self._config
        return {"row": config.sequence_length} if config.packing == "best_fit" else {}

    def _fill(self, source: OpenedSource, workplace: Path) -> None:
        self._check()
        began = time.monotonic()
        part_bytes = part_bytes_of(source.files)
        reader = source.reader(part_bytes)
        parts = workplace / "parts"
        parts.mkdir(exist_ok=True)
        size = sum(unit.size for unit in reader.splits)
        workers = 0 if size < SMALL else self._workers or available_cores()
        maker = PartMaker(
            reader, self._encoder, group_units(reader.splits, part_bytes), self._config.heldout_every,
            stored_dtype(token_dtype(self._tokenizer.vocab_size)).str, parts, threads=workers == 0,
        )  # fmt: skip
        was_begun = any(parts.iterdir())
        with contextlib.closing(self._paths(maker, workers, source.name)) as paths:
            written = assemble(
                paths, workplace / "whole", source.name, self._tokenizer, self._config.packing,
                self._config.sequence_length, compare=source.spec.record == "text",
            )  # fmt: skip
        if written.documents == 0:
            nothing, what = "it has no usable document", skipped_summary(written.left_out)
            if written.heldout_documents:
                nothing = f"all {written.heldout_documents} usable documents are held out, none is trained on"
            raise UserError(f"source {source.name}: {nothing} ({what or 'its files hold no record'})")
        source.check_unchanged()
        self._finish(source, written, workplace / "whole")
        seconds = time.monotonic() - began
        made = _Made(written, seconds, min(workers, len(maker.parts)), was_begun)
        self._report(f"data: {source.name}: {made}")

    def _paths(self, maker: PartMaker, workers: int, name: str) -> Generator[Path]:
        """The part files of a source in order, each when it is made; those that are there are kept."""
        numbers = range(len(maker.parts))
        paths = {number: maker.path(number) for number in numbers}
        for leftover in set(maker.folder.iterdir()) - set(paths.values()):
            leftover.unlink(missing_ok=True)  # it may be that of a process that still ends
        missing = [number for number in numbers if not paths[number].exists()]
        units = maker.reader.splits
        sizes = [sum(units[unit].size for unit in part) for part in maker.parts]
        already = sum(sizes) - sum(sizes[number] for number in missing)
        if already:
            there = len(numbers) - len(missing)
            self._report(f"data: {name}: {there} of {len(numbers)} parts are there from before")
        with (
            Progress(name, sum(sizes), already, self._report) as progress,
            contextlib.closing(
                make_parts(maker, missing, workers, lambda part: progress.add(sizes[part]))
            ) as made,
        ):
            awaited = set(missing)
            for number in numbers:
                if number in awaited:
                    next(made)
                yield paths[number]

    def _fill_heldout(self, source: OpenedSource, reader: SourceReader, workplace: Path) -> None:
        writer = SplitWriter(
            workplace / "whole" / "heldout", source.name, self._tokenizer,
            compare=source.spec.record == "text",
        )  # fmt: skip
        written = Written()
        group = Group(reader, self._encoder, written.left_out, threads=False)
        for unit, held in heldout_records(len(reader.splits), self._config.heldout_every).items():
            for candidate in reader.read(unit):
                if candidate.number in held:
                    group.add(candidate, unit, heldout=True)
                if candidate.number >= held[-1]:
                    break
        for encoded, _ in group.encode():
            writer.add(encoded)
        writer.finish()
        written.heldout_documents = writer.documents
        self._finish(source, written, workplace / "whole")

    def _finish(self, source: OpenedSource, written: Written, whole: Path) -> None:
        """Write down what was built, and make its names as durable as the files."""
        if self._config.heldout_every and not written.heldout_documents:
            what = "its first units give none" if source.kind == "live" else (
                f"one in {self._config.heldout_every} of its {written.candidates} documents is none"
            )  # fmt: skip
            self._report(f"data: {source.name}: nothing is held out: {what}")
        if +written.left_out:
            of = f" (of {written.candidates:,})" if written.candidates else ""
            self._report(f"data: {source.name}: {skipped_summary(written.left_out)}{of}")
        record = SourceRecord(heldout=written.heldout_documents > 0, left_out=dict(+written.left_out))
        write_sealed(whole / "source.json", record.model_dump())
        sync_folder(whole)


class _Made(NamedTuple):
    """How a source was built, for the user. was_begun: some of it by an earlier build."""

    written: Written
    seconds: float
    workers: int
    was_begun: bool

    def __str__(self) -> str:
        written = self.written
        size = written.text_bytes
        how = [f"{self.workers} processes"] if self.workers else []
        if not self.was_begun:
            how.insert(0, f"{shown_size(size / max(self.seconds, 1e-3), decimals=1)}/s")
        if written.slow_reason:
            how.append(f"without the fast tokenizer: {written.slow_reason}")
        cut = (
            f"; rows cut {written.cut:,} of {written.fitting:,} documents that fit" if written.fitting else ""
        )
        return (
            f"{written.documents + written.heldout_documents:,} documents, {written.tokens:,} tokens of "
            f"{shown_size(size)} of text in {self.seconds:.1f} s"
            f"{' (' * bool(how)}{', '.join(how)}{')' * bool(how)}{cut}"
        )
