"""Tokenizes sources into shards: a source of its own folder, in parts, by several processes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from pathlib import Path

from pydantic import JsonValue

from llmkit.config import schema
from llmkit.cores import available_cores
from llmkit.data.building.batch import TokenizeBatch
from llmkit.data.building.cache import Report, build_once, content_key, discard
from llmkit.data.building.opened import BUILD_VERSION, SourceRecord
from llmkit.data.building.parts import PartMaker, group_splits, part_bytes_of
from llmkit.data.building.pool import make_parts
from llmkit.data.building.progress import Progress
from llmkit.data.building.stats import BuildStats
from llmkit.data.building.write_shards import StreamWriter, write_shards
from llmkit.data.live.heldout import heldout_records
from llmkit.data.source import Source
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.records import skipped_summary
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import sync_folder, write_sealed

PARTS_VERSION = 3
"""Changes with the format of parts: those of another llmkit are not taken."""
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

    def build(self, source: Source) -> Path:
        """The folder of a source that is tokenized before training; what is not there is built.

        Raises UserError if it has no document, or holds out all of them.
        """
        folder = self.folder_of(source)
        build_once(folder, lambda tmp: self._fill(source, tmp), self._report)
        return folder

    def folder_of(self, source: Source) -> Path:
        """Where `build` builds a source."""
        described: dict[str, JsonValue] = {"part_bytes": part_bytes_of(source.files), **self._packing()}
        if any(file.path.endswith(".zst") for file in source.files):
            described["zst"] = "whole"  # earlier versions cut them between frames, into other parts
        return self._folder(source, described)

    def build_heldout(self, source: Source, reader: SourceReader) -> Path:
        """The folder with the held-out documents of a live source; what is not there is built."""
        splits: list[JsonValue] = [list(split) for split in reader.splits]
        folder = self._folder(source, {"live": splits})
        build_once(folder, lambda tmp: self._fill_heldout(source, reader, tmp / "whole"), self._report)
        return folder

    def _folder(self, source: Source, described: dict[str, JsonValue]) -> Path:
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

    def _fill(self, source: Source, tmp: Path) -> None:
        self._check()
        began = time.monotonic()
        part_bytes = part_bytes_of(source.files)
        reader = source.reader(part_bytes)
        size = sum(split.size for split in reader.splits)
        workers = 0 if size < SMALL else self._workers or available_cores()
        folder, whole = tmp / f"parts-v{PARTS_VERSION}", tmp / "whole"
        folder.mkdir(exist_ok=True)
        parts = group_splits(reader.splits, part_bytes)
        maker = PartMaker(
            reader, self._encoder, parts, self._config.heldout_every, folder, threads=workers == 0
        )
        was_begun = any(folder.iterdir())
        with contextlib.closing(self._parts(maker, workers, source.name)) as paths:
            stats = write_shards(
                paths, whole, source.name, self._tokenizer, self._config.packing,
                self._config.sequence_length, compare=source.spec.record == "text",
            )  # fmt: skip
        if stats.documents == 0:
            nothing, what = "it has no usable document", skipped_summary(stats.left_out)
            if stats.heldout_documents:
                nothing = f"all {stats.heldout_documents} usable documents are held out, none is trained on"
            raise UserError(f"source {source.name}: {nothing} ({what or 'its files hold no record'})")
        source.check_unchanged()
        self._finish(source, stats, whole)
        line = stats.line(time.monotonic() - began, min(workers, len(parts)), was_begun)
        self._report(f"data: {source.name}: {line}")

    def _parts(self, maker: PartMaker, workers: int, name: str) -> Generator[Path]:
        """The parts of a source in order, each when it is made; those that are there are kept."""
        numbers = range(len(maker.parts))
        paths = {number: maker.path(number) for number in numbers}
        for leftover in set(maker.folder.iterdir()) - set(paths.values()):
            discard(leftover)  # it may be that of a process that is about to end
        missing = [number for number in numbers if not paths[number].exists()]
        splits = maker.reader.splits
        sizes = [sum(splits[split].size for split in part) for part in maker.parts]
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

    def _fill_heldout(self, source: Source, reader: SourceReader, whole: Path) -> None:
        compare, stats = source.spec.record == "text", BuildStats()
        stream = StreamWriter(whole / "heldout", source.name, self._tokenizer, compare)
        batch = TokenizeBatch(reader, self._encoder, stats, threads=False)
        for split, held in heldout_records(len(reader.splits), self._config.heldout_every).items():
            for record in reader.read(split):
                if record.number in held:
                    batch.add(record, split, heldout=True)
                if record.number >= held[-1]:
                    break
        stream.add_encoded([document for document, _ in batch.encode()])
        stream.finish()
        stats.heldout_documents = stream.documents
        self._finish(source, stats, whole)

    def _finish(self, source: Source, stats: BuildStats, whole: Path) -> None:
        """Write down what was built, and make its names as durable as the files."""
        if self._config.heldout_every and not stats.heldout_documents:
            what = "its first splits give none" if source.kind == "live" else (
                f"one in {self._config.heldout_every} of its {stats.records} documents is none"
            )  # fmt: skip
            self._report(f"data: {source.name}: nothing is held out: {what}")
        if +stats.left_out:
            of = f" (of {stats.records:,})" if stats.records else ""
            self._report(f"data: {source.name}: {skipped_summary(stats.left_out)}{of}")
        copies = None if source.kind == "live" else stats.duplicates
        record = SourceRecord(
            heldout=stats.heldout_documents > 0, left_out=dict(+stats.left_out), duplicates=copies
        )
        write_sealed(whole / "source.json", record.model_dump())
        sync_folder(whole)
