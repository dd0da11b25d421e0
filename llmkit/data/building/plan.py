"""`llmkit data build --plan`: sizes, tokens, time and disk of a build, from samples; nothing is written."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.config import schema
from llmkit.cores import available_cores
from llmkit.data.building.batch import TokenizeBatch
from llmkit.data.building.build_source import SMALL, Builder
from llmkit.data.building.cached_tokenizer import planned_tokenizer
from llmkit.data.building.parts import part_bytes_of
from llmkit.data.building.probe import check_sources, open_sources
from llmkit.data.building.stats import BuildStats
from llmkit.data.prepared import shown_size
from llmkit.data.shards.format import stored_dtype, token_dtype
from llmkit.data.source import Source
from llmkit.data.sources.reader import SourceReader
from llmkit.data.sources.unpacked import share_before, unpacked_bytes
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.text_encoder import TIKTOKEN_AFTER
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.error_text import terminal_width, wrapped_line

SAMPLE_TEXT = 4 << 20
"""Characters of a source that are tokenized to measure it; all of them where it has no more."""
SAMPLE_SPLITS = 16
"""Splits, evenly spread over a source, from whose beginnings they are taken."""


@dataclass(frozen=True)
class SourcePlan:
    """What building a source takes; figures are estimates where `sampled` is below 1.

    kind: built, live or given (by others). folder: where it is or will be built; is_built: it is there.
    stored_bytes: of the files as they are. unpacked_bytes: of all that is in them. text_bytes: UTF-8 bytes
    of the text of the documents that can be used. disk_bytes: of the shards, which stay. seconds: until
    they are there. sampled: share of the source that was tokenized. None: does not apply, as the source is
    not built.
    """

    name: str
    kind: str
    files: int
    stored_bytes: int
    folder: str | None = None
    is_built: bool = False
    unpacked_bytes: int | None = None
    text_bytes: int | None = None
    documents: int | None = None
    left_out: int | None = None
    tokens: int | None = None
    disk_bytes: int | None = None
    seconds: float | None = None
    sampled: float | None = None


@dataclass(frozen=True)
class BuildPlan:
    """What building all sources takes. workers: processes that tokenize.

    disk_bytes: of the shards that are not there yet. peak_bytes: the most that they, and the parts of the
    source that is being built, take meanwhile. free_bytes: of the disk with the cache. tokenizer: None, or
    why the figures are those of another one.
    """

    sources: list[SourcePlan]
    cache_dir: str
    workers: int
    disk_bytes: int
    peak_bytes: int
    free_bytes: int
    seconds: float
    tokenizer: str | None


def plan_command(
    config: schema.Data, tokenizer: Tokenizer | None, workers: int | None, as_json: bool
) -> None:
    """Prints the plan of a build, as text or JSON."""
    plan = plan_build(config, tokenizer, workers)
    if as_json:
        print(json.dumps(dataclasses.asdict(plan), indent=1))
        return
    width = terminal_width(sys.stdout)
    for line in plan_lines(plan):
        is_row = "  " in line
        print(line if width is None or is_row else wrapped_line(line, width))


def plan_build(
    config: schema.Data, tokenizer: Tokenizer | None = None, workers: int | None = None
) -> BuildPlan:
    """Measures a sample of each source that is to be built; arguments as in `prepare`.

    Raises UserError, or RunFault, for sources that cannot be used, all of them at once.
    """
    sources = open_sources(config)
    note = None
    if tokenizer is None:
        tokenizer, note = planned_tokenizer(config, sources, lambda: check_sources(sources))
    encoder = RecordEncoder(tokenizer, pair_length=config.sequence_length if config.has_pairs else None)
    check_sources(sources, encoder)
    builder = Builder(config, tokenizer, encoder, print, workers, lambda: None)
    workers = workers or available_cores()
    plans = [_plan_source(source, builder, encoder, workers, note is None) for source in sources]
    missing = [plan for plan in plans if plan.disk_bytes and not plan.is_built]
    # Small sources come first: the largest is built, twice, when all others are there.
    disk = sum(plan.disk_bytes or 0 for plan in missing)
    return BuildPlan(
        sources=plans,
        cache_dir=config.cache_dir,
        workers=workers,
        disk_bytes=disk,
        peak_bytes=disk + max((plan.disk_bytes or 0 for plan in missing), default=0),
        free_bytes=shutil.disk_usage(_existing(Path(config.cache_dir))).free,
        seconds=sum(plan.seconds or 0.0 for plan in missing),
        tokenizer=note,
    )


def _existing(path: Path) -> Path:
    """The path, or the innermost folder above it that is there."""
    path = Path(os.path.abspath(path))
    return path if path.exists() else _existing(path.parent)


def _plan_source(
    source: Source, builder: Builder, encoder: RecordEncoder, workers: int, is_final: bool
) -> SourcePlan:
    stored = sum(file.size for file in source.files)
    kind = "given" if source.is_given else "live" if source.spec.live else "built"
    plan = SourcePlan(source.name, kind, len(source.files), stored)
    if kind != "built":
        return plan
    folder = builder.folder_of(source) if is_final else None
    if stored > TIKTOKEN_AFTER:
        encoder.tokenizer.enable_tiktoken()  # which happens by itself in a build
    reader = source.reader(min(part_bytes_of(source.files), SAMPLE_TEXT))
    stats, read, seconds = _measure(reader, encoder)
    size = sum(split.size for split in reader.splits)
    share = min(1.0, read / size) if read else 1.0
    item = stored_dtype(token_dtype(encoder.tokenizer.vocab_size)).itemsize
    tokens, documents = round(stats.tokens / share), round(stats.documents / share)
    masks = 0 if source.spec.record == "text" else tokens // 8
    return dataclasses.replace(
        plan,
        folder=None if folder is None else str(folder),
        is_built=folder is not None and folder.exists(),
        unpacked_bytes=unpacked_bytes(reader),
        text_bytes=round(stats.text_bytes / share),
        documents=documents,
        left_out=round((stats.records - stats.documents) / share),
        tokens=tokens,
        disk_bytes=tokens * item + 8 * documents + masks,
        seconds=round(seconds / share / (workers if size >= SMALL else 1), 2),
        sampled=share,
    )


def _measure(reader: SourceReader, encoder: RecordEncoder) -> tuple[BuildStats, float, float]:
    """What a sample of a source has, its size in the bytes of the splits, and the seconds that it took."""
    stats, read, began = BuildStats(tokens=1), 0.0, time.perf_counter()
    batch = TokenizeBatch(reader, encoder, stats, threads=False)
    chosen = min(SAMPLE_SPLITS, len(reader.splits))
    for split in (k * len(reader.splits) // chosen for k in range(chosen)):
        if batch.text >= SAMPLE_TEXT:  # a split of which a share would tell nothing was read whole
            break
        budget, share = batch.text + SAMPLE_TEXT // chosen, None
        for record in reader.read(split):
            if batch.text + batch.size >= budget:
                share = share_before(reader, split, record)
                if share is not None:
                    break
            batch.add(record, split, heldout=False)
            stats.records += 1
        for document, _ in batch.encode():
            stats.documents += 1
            stats.tokens += document.tokens.size + 1
        read += (1.0 if share is None else share) * reader.splits[split].size
    return stats, read, time.perf_counter() - began


def plan_lines(plan: BuildPlan) -> Iterator[str]:
    """The plan for the user."""
    rows: list[Sequence[str]] = [
        ("source", "files", "stored", "unpacked", "documents", "tokens", "on disk", "time")
    ]
    rows += [_row(source) for source in plan.sources]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, strict=True)
        yield "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in [*cells][1:])])
    for source in plan.sources:
        if source.sampled is not None and source.sampled < 1:
            yield f"{source.name}: estimated from {source.sampled:.2%} of it"
        if source.left_out:
            yield f"{source.name}: about {source.left_out:,} documents will be left out"
    if plan.tokenizer:
        yield f"tokens are estimated: {plan.tokenizer}"
    yield (
        f"to build: {shown_size(plan.disk_bytes)} stay in {plan.cache_dir}, up to "
        f"{shown_size(plan.peak_bytes)} while building ({shown_size(plan.free_bytes)} are free), about "
        f"{_duration(plan.seconds)} with {plan.workers} processes as fast as this one"
    )
    if plan.peak_bytes > plan.free_bytes:
        yield "WARNING: the disk has not that much room; name another data.cache_dir"


def _row(source: SourcePlan) -> Sequence[str]:
    first = [source.name, f"{source.files:,}", shown_size(source.stored_bytes, 1)]
    if source.tokens is None or source.disk_bytes is None or source.unpacked_bytes is None:
        what = "tokenized in training" if source.kind == "live" else "read as it is"
        return (*first, "", "", "", "", what)
    about = "" if source.sampled == 1 else "~"
    counts = [f"{about}{count:,}" for count in (source.documents, source.tokens)]
    when = "is built" if source.is_built else _duration(source.seconds or 0.0)
    sizes = shown_size(source.unpacked_bytes, 1), shown_size(source.disk_bytes, 1)
    return (*first, sizes[0], *counts, about + sizes[1], when)


def _duration(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
