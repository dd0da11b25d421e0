"""Writes everything that a built folder holds: the tokenizer, each source's shards, the manifest."""

from __future__ import annotations

import gzip
import lzma
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from llmkit.config import schema
from llmkit.data.prepared import Manifest, SourceRecord
from llmkit.data.shards.writer import ShardWriter
from llmkit.data.sources.documents import Documents, left_out_summary, split_heldout
from llmkit.data.tokens.make_tokenizer import make_tokenizer
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.files import sync_folder, write_json

TOKENIZER_TEXT = 1 << 28
"""Characters that a tokenizer is trained on, over all sources."""
GROUP_TEXT = 1 << 20
"""Characters tokenized at a time, enough to keep the tokenizer's threads busy."""
COMPRESS_LIMIT = 16 << 20
"""Held-out bytes up to which general compressors are run for comparison."""
PROGRESS_SECONDS = 10.0

Report = Callable[[str], None]


def write_corpus(config: schema.Data, sources: list[Documents], folder: Path, report: Report) -> None:
    """Fill `folder`; what it holds is on the disk when this returns.

    Raises UserError if a source has no document to train on, or the tokenizer cannot be had.
    """
    began = time.monotonic()
    splits = {source.name: split_heldout(len(source), config.heldout_every) for source in sources}
    training = {name: train for name, (train, _) in splits.items()}
    tokenizer = make_tokenizer(config.tokenizer, _tokenizer_texts(sources, training))
    tokenizer.save(folder / "tokenizer")
    if config.tokenizer.type == "bpe":
        _report_size(tokenizer.vocab_size, config.tokenizer.vocab_size or schema.BPE_VOCAB_SIZE, report)

    records: dict[str, SourceRecord] = {}
    for source in sources:
        train, heldout = splits[source.name]
        writing = _SourceWriter(source, tokenizer, folder, report)
        if not writing.write("train", train):
            what = left_out_summary(writing.left_out) or f"{len(train)} of its {len(source)} documents"
            raise UserError(f"source {source.name}: there is no document to train on ({what})")
        has_heldout = writing.write("heldout", heldout)
        if config.heldout_every and not has_heldout:
            few = f"one in {config.heldout_every} of its {len(source)} documents is none"
            report(f"data: {source.name}: nothing is held out: {few}")
        if writing.left_out:
            report(f"data: {source.name}: {left_out_summary(writing.left_out)}")
        records[source.name] = SourceRecord(heldout=has_heldout, left_out=dict(writing.left_out))
    write_json(folder / "build.json", Manifest(sources=records).model_dump())
    for place in (*folder.glob("*"), folder):
        if place.is_dir():
            sync_folder(place)
    report(f"data: built in {time.monotonic() - began:.1f} s")


def _report_size(size: int, wanted: int, report: Report) -> None:
    if size < wanted:
        report(
            f"data: WARNING: the text yields a tokenizer of {size} tokens only, {wanted} are asked for in "
            "data.tokenizer.vocab_size; more text or a smaller size would make them meet"
        )
    else:
        report(f"data: trained a tokenizer of {size} tokens")


def _tokenizer_texts(sources: list[Documents], training: dict[str, list[int]]) -> Iterator[str]:
    """Training documents of all sources, each up to its part of TOKENIZER_TEXT."""
    for source in sources:
        room = TOKENIZER_TEXT // len(sources)
        for text in source.texts(training[source.name], Counter()):
            yield text
            room -= len(text)
            if room <= 0:
                break


class _SourceWriter:
    """Writes the shards of one source and counts what is left out of both splits."""

    def __init__(self, source: Documents, tokenizer: Tokenizer, folder: Path, report: Report) -> None:
        self.source, self.tokenizer, self.folder, self.report = source, tokenizer, folder, report
        self.left_out: Counter[str] = Counter()

    def write(self, split: Literal["train", "heldout"], numbers: list[int]) -> bool:
        """Write one split; False, and no folder, if none of its documents is usable."""
        name, tokenizer = self.source.name, self.tokenizer
        place = self.folder / split / name
        writer = ShardWriter(place, name, tokenizer.hash, tokenizer.vocab_size, tokenizer.end_of_text_id)
        reference = _Compressors() if split == "heldout" else None
        documents, text_bytes, told = 0, 0, time.monotonic()
        for group in _groups(self.source.texts(numbers, self.left_out)):
            for text, tokens in zip(group, tokenizer.encode_batch(group), strict=True):
                content = text.encode()
                writer.add(tokens, len(content))
                if reference is not None:
                    reference.add(content)
                documents, text_bytes = documents + 1, text_bytes + len(content)
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                size = f"{text_bytes / 1e6:,.0f} MB"
                self.report(f"data: {name}/{split}: {documents:,} of {len(numbers):,} documents, {size}")
        writer.finish(reference.bits_per_byte() if reference is not None else None)
        if documents == 0:
            shutil.rmtree(place)
        return documents > 0


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    """Texts in lists of about GROUP_TEXT characters."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP_TEXT:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Compressors:
    """What general compressors make of the held-out text: figures for a model to beat."""

    def __init__(self) -> None:
        self._parts: list[bytes] | None = []
        self._size = 0

    def add(self, content: bytes) -> None:
        self._size += len(content)
        if self._size > COMPRESS_LIMIT:
            self._parts = None
        if self._parts is not None:
            self._parts.append(content)

    def bits_per_byte(self) -> dict[str, JsonValue]:
        """Bits per UTF-8 byte of `xz -9e` and `gzip -9`; empty for too much text, or none."""
        text = b"".join(self._parts or [])
        if not text:
            return {}
        xz, gz = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME), gzip.compress(text, 9)
        return {"xz_bits_per_byte": 8 * len(xz) / len(text), "gzip_bits_per_byte": 8 * len(gz) / len(text)}
