"""All that a run reads, opened, and what there is to say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from llmkit.config import schema
from llmkit.data.shards.dataset import TokenDataset
from llmkit.data.shards.megatron import MegatronReader
from llmkit.data.shards.reader import ShardReader
from llmkit.data.source import Source
from llmkit.data.state import Fingerprint, SourceFingerprint
from llmkit.data.tokens.encode import RecordEncoder
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError

VERIFIED = 1 << 20
"""Tokens whose text is counted at a time."""


@dataclass(frozen=True)
class PreparedData:
    """All that training and evaluation read.

    sources: in the order of the settings. sequence_length: tokens of a row of the stream (`Data.row_length`).
    fingerprint: what the order of the rows depends on, by content and not by path. has_pairs: whether a row
    is a pair.
    """

    sources: tuple[Source, ...]
    tokenizer: Tokenizer
    sequence_length: int
    document_masks: bool
    fingerprint: Fingerprint
    has_pairs: bool = False

    @classmethod
    def of(cls, config: schema.Data, tokenizer: Tokenizer, sources: Sequence[Source]) -> PreparedData:
        """The data of the settings, whose sources are prepared."""
        return cls(
            sources=tuple(sources),
            tokenizer=tokenizer,
            sequence_length=config.row_length,
            document_masks=config.document_masks,
            fingerprint=_fingerprint(config, tokenizer, sources),
            has_pairs=config.has_pairs,
        )

    @cached_property
    def heldout(self) -> dict[str, ShardReader]:
        """The held-out tokens by source, of those that have some."""
        return {source.name: source.heldout for source in self.sources if source.heldout is not None}

    @cached_property
    def stored(self) -> dict[str, TokenDataset]:
        """The training tokens by source, of all sources but the live ones."""
        return {source.name: source.stored for source in self.sources if source.stored is not None}

    @property
    def train_tokens(self) -> int:
        """Training tokens of all sources but the live ones, end-of-text included."""
        return sum(rows.tokens for rows in self.stored.values())

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes of the text that is to be learned, of those sources where they are known."""
        return sum(rows.text_bytes or 0 for rows in self.stored.values())

    @property
    def heldout_bytes(self) -> int:
        """UTF-8 bytes of the held-out text that is to be learned."""
        return sum(rows.index.text_bytes for rows in self.heldout.values())

    @cached_property
    def heldout_targets(self) -> int:
        """Tokens of the held-out text that are targets of the loss; of pairs, their number."""
        rows = self.heldout.values()
        return sum(each.documents if self.has_pairs else each.count_targets() for each in rows)


def _fingerprint(config: schema.Data, tokenizer: Tokenizer, sources: Sequence[Source]) -> Fingerprint:
    template = None
    if any(_is_rendered(source) for source in sources):
        template = RecordEncoder(tokenizer).template_key
    return Fingerprint(
        tokenizer=tokenizer.hash,
        sequence_length=config.row_length,
        document_masks=config.document_masks,
        packing=config.packing,
        lanes=config.stream_shards if any(source.live for source in sources) else None,
        sources=[fingerprint_of(source, template if _is_rendered(source) else None) for source in sources],
    )


def fingerprint_of(source: Source, template: str | None = None) -> SourceFingerprint:
    """What a prepared source is known by; template: hash of the chat template, if it has chats."""
    rows = source.live if source.stored is None else source.stored
    assert rows is not None, f"{source.name} is not prepared"
    return SourceFingerprint(
        name=source.name,
        kind=source.kind,
        tokens=source.stored.tokens if source.stored else None,
        digest=rows.digest,
        strict_digest=source.live.strict_digest if source.live else None,
        heldout=source.heldout.digest if source.heldout else None,
        template=template,
    )


def _is_rendered(source: Source) -> bool:
    """Whether a chat template may have made its tokens."""
    return source.spec.record in ("chat", "preference") and not source.is_given


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


def summary(prepared: PreparedData) -> str:
    """What there is to train on, as a line for the user."""
    live = [source.name for source in prepared.sources if source.live]
    parts = []
    if prepared.stored:
        some_context = any(rows.has_mask for rows in prepared.stored.values())
        size = shown_size(prepared.train_bytes) + " to learn" * some_context
        parts.append(f"{prepared.train_tokens:,} training tokens of {size}")
    if live:
        parts.append(f"{', '.join(live)} tokenized while training (not counted)")
    parts.append(f"{shown_size(prepared.heldout_bytes)} held out")
    return f"data: {', '.join(parts)}"


def lane_lines(prepared: PreparedData, ranks: int) -> Iterator[str]:
    """How each live source is shared out to data-parallel processes, and what to do if it is wasteful."""
    for source in prepared.sources:
        if source.live is None:
            continue
        lanes, most = source.live.lanes, source.live.largest_share(ranks)
        line = f"data: {source.name} is read in {lanes} lane{'s' * (lanes > 1)}"
        if most > 1.5 / ranks:
            if source.live.columns % ranks:
                remedy = f"make data.stream_shards a multiple of the {ranks} data-parallel processes"
            else:
                remedy = "give it more files, or such as can be cut (plain jsonl, parquet with row groups)"
            line += f"; a process tokenizes up to {most:.0%} of it to use {1 / ranks:.1%}: {remedy}"
        yield line


def verify(prepared: PreparedData, report: Callable[[str], None]) -> list[dict[str, object]]:
    """Check all that has a checksum; raises UserError that names the first damaged file.

    Returns what was read of each source, for programs: name, split, tokens and blocks, or that it is live.
    """
    read = list[dict[str, object]]()
    for name, split, rows in _datasets(prepared):
        known = "as they were written" if isinstance(rows, ShardReader) else "ids of the vocabulary"
        if isinstance(rows, ShardReader) and rows.index.version == 1:
            known += _text_without_checksum(rows, prepared.tokenizer)
        blocks = rows.verify()
        if isinstance(rows, MegatronReader) and (inside := rows.ends_inside()):
            known += f"; {inside:,} end-of-text lie inside documents of the .idx, which end there for a row"
        report(f"{name}/{split}: {rows.tokens:,} tokens in {blocks} blocks are {known}")
        read.append({"source": name, "split": split, "tokens": rows.tokens, "blocks": blocks, "known": known})
    for source in prepared.sources:
        if source.live:
            report(f"{source.name}: is tokenized while training, so there is nothing to verify")
            read.append({"source": source.name, "live": True})
    return read


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


def _datasets(prepared: PreparedData) -> Iterator[tuple[str, str, TokenDataset]]:
    for source in prepared.sources:
        for split, rows in (("train", source.stored), ("heldout", source.heldout)):
            if rows is not None:
                yield source.name, split, rows
