"""All that a run reads, opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from llmkit.config import schema
from llmkit.data.building.cache import opening_cache
from llmkit.data.building.given import Given
from llmkit.data.live.source import LiveSource
from llmkit.data.shards.dataset import TokenDataset
from llmkit.data.shards.megatron import MegatronReader
from llmkit.data.shards.reader import ShardReader
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import read_sealed

BUILD_VERSION = 3
"""Changes with anything that makes the same sources give other folders."""
VERIFIED = 1 << 20
"""Tokens whose text is counted at a time."""


class SourceRecord(BaseModel):
    """What was built of a source: whether it has held-out documents, and what was left out, by reason.

    duplicates: documents that are exact copies of others; None = not counted.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    version: Literal[2, 3, 4] = 4
    """3 = with a checksum over itself, 4 = may have counted duplicates."""
    heldout: bool
    left_out: dict[str, int]
    duplicates: int | None = None


class Place(NamedTuple):
    """Where a source is. folder: what was built of it, if anything. live: what tokenizes it. given: tokens
    that somebody else made."""

    name: str
    spec: schema.Source
    folder: Path | None = None
    live: LiveSource | None = None
    given: Given | None = None


@dataclass(frozen=True)
class TrainSource:
    """What a source gives to train on.

    weight: share of the rows relative to the other sources. max_epochs: how often it may be read; None = no
    limit. rows: tokens on disk, or what tokenizes while training. reference: of pairs, (pairs, 2) float32,
    the log-probabilities of their sequences under the reference model.
    """

    name: str
    weight: float
    max_epochs: int | None
    rows: TokenDataset | LiveSource
    reference: np.ndarray | None = None

    @property
    def kind(self) -> Literal["shards", "megatron", "live"]:
        """How its rows are read."""
        if isinstance(self.rows, LiveSource):
            return "live"
        return "megatron" if isinstance(self.rows, MegatronReader) else "shards"

    @property
    def stored(self) -> TokenDataset | None:
        """Its tokens on disk; None for a live source."""
        return None if isinstance(self.rows, LiveSource) else self.rows


@dataclass(frozen=True)
class HeldOutSource:
    """A source's held-out tokens; `reader.index.extra` may have what general compressors make of the text.

    reference: as in `TrainSource`.
    """

    name: str
    reader: ShardReader
    reference: np.ndarray | None = None


@dataclass(frozen=True)
class Prepared:
    """All that training and evaluation read.

    folders: what was built for each source, by name. heldout: sources that have held-out documents, maybe
    none. left_out: for each source, how many documents were left out or mended when it was built, by
    reason. duplicates: for each source of which they were counted, how many documents are exact copies of
    others. sequence_length: tokens of a row of the stream (`Data.row_length`). fingerprint: what the order of
    the rows depends on, by content and not by path; JSON. has_pairs: whether a row is a pair.
    """

    folders: dict[str, Path]
    tokenizer: Tokenizer
    train: tuple[TrainSource, ...]
    heldout: tuple[HeldOutSource, ...]
    left_out: dict[str, dict[str, int]]
    duplicates: dict[str, int]
    sequence_length: int
    document_masks: bool
    fingerprint: dict[str, Any]
    has_pairs: bool = False

    @property
    def train_tokens(self) -> int:
        """Training tokens of all sources but the live ones, end-of-text included."""
        return sum(source.stored.tokens for source in self.train if source.stored)

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the text that is to be learned, of those sources where they are known."""
        return sum(source.stored.text_bytes or 0 for source in self.train if source.stored)

    @property
    def heldout_bytes(self) -> int:
        """UTF-8 bytes of the held-out text that is to be learned."""
        return sum(source.reader.index.text_bytes for source in self.heldout)

    @cached_property
    def heldout_targets(self) -> int:
        """Tokens of the held-out text that are targets of the loss; of pairs, their number."""
        if self.has_pairs:
            return sum(source.reader.documents for source in self.heldout)
        return sum(source.reader.count_targets() for source in self.heldout)


def open_prepared(config: schema.Data, tokenizer: Tokenizer, places: Sequence[Place]) -> Prepared:
    """Open the sources of the settings at their places, in the settings' order.

    Raises UserError if something is damaged or of another tokenizer.
    """
    train, heldout, left_out, duplicates = [], [], {}, {}
    for place in places:
        spec, record = place.spec, _read_record(place.folder) if place.folder else None
        source = TrainSource(place.name, spec.weight, spec.max_epochs, _open_train(place, tokenizer))
        train.append(source)
        left_out[place.name] = record.left_out if record else {}
        if record and record.duplicates is not None:
            duplicates[place.name] = record.duplicates
        if record and record.heldout and place.folder:
            heldout.append(HeldOutSource(place.name, _open(place.folder, "heldout", tokenizer)))
        elif place.given and place.given.heldout:
            heldout.append(HeldOutSource(place.name, place.given.heldout))
    return Prepared(
        folders={place.name: place.folder for place in places if place.folder},
        tokenizer=tokenizer,
        train=tuple(train),
        heldout=tuple(heldout),
        left_out=left_out,
        duplicates=duplicates,
        sequence_length=config.row_length,
        document_masks=config.document_masks,
        fingerprint=_fingerprint(config, tokenizer, places, train, heldout),
        has_pairs=config.has_pairs,
    )


def require_row(name: str, tokens: int, length: int) -> None:
    """Raises UserError unless so many training tokens of a source fill a row of `length`."""
    if tokens <= length:
        raise UserError(
            f"source {name}: it has {tokens:,} training tokens, and a row of data.sequence_length {length:,} "
            f"takes {length + 1:,}, one more to predict; give it more text or lower data.sequence_length"
        )


def shown_size(count: float, decimals: int = 2) -> str:
    """A number of bytes for the user, in the unit that shows it. decimals: of gigabytes and megabytes."""
    if count >= 1e9:
        return f"{count / 1e9:,.{decimals}f} GB"
    if count >= 1e5:
        return f"{count / 1e6:,.{decimals}f} MB"
    return f"{count / 1e3:.1f} kB" if count >= 1000 else f"{count:.0f} bytes"


def summary(prepared: Prepared) -> str:
    """What there is to train on, as a line for the user."""
    live = [source.name for source in prepared.train if source.stored is None]
    parts = []
    if len(live) < len(prepared.train):
        some_context = any(source.stored.has_mask for source in prepared.train if source.stored)
        size = shown_size(prepared.train_bytes) + " to learn" * some_context
        parts.append(f"{prepared.train_tokens:,} training tokens of {size}")
    if live:
        parts.append(f"{', '.join(live)} tokenized while training (not counted)")
    parts.append(f"{shown_size(prepared.heldout_bytes)} held out")
    return f"data: {', '.join(parts)}"


def lane_lines(prepared: Prepared, ranks: int) -> Iterator[str]:
    """How each live source is shared out to data-parallel processes, and what to do if it is wasteful."""
    for source in prepared.train:
        if not isinstance(source.rows, LiveSource):
            continue
        lanes, most = source.rows.lanes, source.rows.largest_share(ranks)
        line = f"data: {source.name} is read in {lanes} lane{'s' * (lanes > 1)}"
        if most > 1.5 / ranks:
            if source.rows.columns % ranks:
                remedy = f"make data.stream_shards a multiple of the {ranks} data-parallel processes"
            else:
                remedy = "give it more files, or such as can be cut (plain jsonl, parquet with row groups)"
            line += f"; a process tokenizes up to {most:.0%} of it to use {1 / ranks:.1%}: {remedy}"
        yield line


def verify(prepared: Prepared, report: Callable[[str], None]) -> None:
    """Check all that has a checksum; raises UserError that names the first damaged file."""
    for name, place, rows in _stored(prepared):
        known = "as they were written" if isinstance(rows, ShardReader) else "ids of the vocabulary"
        if isinstance(rows, ShardReader) and rows.index.version == 1:
            known += _text_without_checksum(rows, prepared.tokenizer)
        blocks = rows.verify()
        if isinstance(rows, MegatronReader) and (inside := rows.ends_inside()):
            known += f"; {inside:,} end-of-text lie inside documents of the .idx, which end there for a row"
        report(f"{name}/{place}: {rows.tokens:,} tokens in {blocks} blocks are {known}")
    for source in prepared.train:
        if source.stored is None:
            report(f"{source.name}: is tokenized while training, so there is nothing to verify")


def _text_without_checksum(rows: ShardReader, tokenizer: Tokenizer) -> str:
    """What is known of the size of a text that no checksum covers, which an older llmkit wrote.

    Raises UserError where the tokens tell that it is wrong.
    """
    told = f"{rows.text_bytes:,} bytes of text by an index.json without a checksum"
    if rows.has_mask or not tokenizer.keeps_bytes:
        return f", {told} (build them again for one)"
    counted = 0
    for start in range(0, rows.tokens, VERIFIED):
        tokens = rows.read(start, min(start + VERIFIED, rows.tokens))
        counted += tokenizer.count_bytes(tokens[tokens != tokenizer.end_of_text_id])
    if counted != rows.text_bytes:
        raise UserError(f"{rows.folder}: {told}, but its tokens have {counted:,}; build the data again")
    return f", {told}, as its tokens have"


def _stored(prepared: Prepared) -> Iterator[tuple[str, str, TokenDataset]]:
    heldout = {source.name: source.reader for source in prepared.heldout}
    for source in prepared.train:
        if source.stored:
            yield source.name, "train", source.stored
        if source.name in heldout:
            yield source.name, "heldout", heldout[source.name]


def _fingerprint(
    config: schema.Data,
    tokenizer: Tokenizer,
    places: Sequence[Place],
    train: list[TrainSource],
    heldout: list[HeldOutSource],
) -> dict[str, Any]:
    kinds = ("chat", "preference")
    chats = {place.name for place in places if place.spec.record in kinds and (place.folder or place.live)}
    template = RecordEncoder(tokenizer).template_key if chats else None
    held = {source.name: source.reader.digest for source in heldout}
    return {
        "tokenizer": tokenizer.hash,
        "sequence_length": config.row_length,
        "document_masks": config.document_masks,
        "packing": config.packing,
        "lanes": config.stream_shards if any(source.kind == "live" for source in train) else None,
        "sources": [
            {
                "name": source.name,
                "kind": source.kind,
                "tokens": source.stored.tokens if source.stored else None,
                "digest": source.rows.digest,
                "strict_digest": source.rows.strict_digest if isinstance(source.rows, LiveSource) else None,
                "heldout": held.get(source.name),
                "template": template if source.name in chats else None,
            }
            for source in train
        ],
    }


def _open_train(place: Place, tokenizer: Tokenizer) -> TokenDataset | LiveSource:
    if place.live is not None:
        return place.live
    if place.given is not None:
        return place.given.rows
    assert place.folder is not None, place.name
    return _open(place.folder, "train", tokenizer)


def _open(folder: Path, split: str, tokenizer: Tokenizer) -> ShardReader:
    with opening_cache():
        return ShardReader(
            folder / split,
            tokenizer.vocab_size,
            tokenizer.hash,
            rebuild_remedy(folder),
            tokenizer.end_of_text_id,
        )


def rebuild_remedy(folder: Path) -> str:
    """What to do where a folder of the cache is damaged, for messages."""
    return f"delete {folder} and build the data again"


def _read_record(folder: Path) -> SourceRecord:
    path = folder / "source.json"
    try:
        with opening_cache():
            return SourceRecord.model_validate(read_sealed(path, rebuild_remedy(folder), first=3))
    except ValidationError as error:
        raise UserError(f"{path}: of another version or damaged; {rebuild_remedy(folder)}") from error
