"""Appends the parts of a source to its shards, in order."""

from __future__ import annotations

import gzip
import lzma
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import JsonValue

from llmkit.data.building import packing
from llmkit.data.building.part_file import Documents, PartReader
from llmkit.data.shards.writer import ShardWriter
from llmkit.data.tokens.encode import Encoded
from llmkit.data.tokens.tokenizer import Tokenizer

PLAN_TOKENS = 32 << 20
"""Tokens whose documents are packed together: enough for every gap to find its document."""
COMPRESS_LIMIT = 2 << 20
"""Held-out bytes up to which general compressors are run for comparison: they take a second for a MB."""


@dataclass
class Written:
    """What was written of a source.

    text_bytes: UTF-8 bytes of all the text, also of that which is not to be learned. fitting: with best_fit,
    documents to train on that are no longer than a row. cut: how many of these a row's end cuts all the same.
    """

    candidates: int = 0
    documents: int = 0
    heldout_documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    fitting: int = 0
    cut: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    slow_reason: str | None = None


class SplitWriter:
    """Writes the shards of one split of a source; where no document comes, no folder remains.

    compare: run general compressors on the text, as far as it is not too much.
    """

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer, compare: bool) -> None:
        self.documents = 0
        self.tokens = 1
        """Of the stream so far, which begins with an end-of-text."""
        self._folder = folder
        self._writer = ShardWriter(
            folder, name, tokenizer.hash, tokenizer.vocab_size, tokenizer.end_of_text_id
        )
        self._compressors = _Compressors(tokenizer) if compare else None

    def add(self, document: Encoded) -> None:
        """Append a document."""
        self._writer.add(document.tokens, document.text_bytes, document.targets, document.end_is_target)
        self.documents += 1
        self.tokens += document.tokens.size + 1
        if self._compressors is not None:
            self._compressors.add(document)

    def finish(self) -> bool:
        """Make the folder readable; False, and no folder, if there is no document."""
        self._writer.finish(None if self._compressors is None else self._compressors.bits_per_byte())
        if self.documents == 0:
            shutil.rmtree(self._folder)
        return self.documents > 0


def assemble(
    paths: Iterator[Path],
    folder: Path,
    name: str,
    tokenizer: Tokenizer,
    pack: Literal["concatenate", "best_fit"],
    sequence_length: int,
    compare: bool,
) -> Written:
    """Write `folder`/train and `folder`/heldout from part files, as they come.

    Memory does not grow with the source, and the result does not depend on when parts come.
    """
    train = SplitWriter(folder / "train", name, tokenizer, compare=False)
    heldout = SplitWriter(folder / "heldout", name, tokenizer, compare)
    written = Written()
    waiting: list[Documents] = []
    for path in paths:
        part = PartReader(path)
        written.left_out += part.left_out
        written.candidates += part.candidates
        written.text_bytes += part.text_bytes
        written.slow_reason = part.slow_reason or written.slow_reason
        for block, held in part.blocks():
            for document in held.one_by_one():
                heldout.add(document)
            waiting.append(block)
            if pack == "concatenate" or sum(block.tokens.size for block in waiting) >= PLAN_TOKENS:
                _append(train, waiting, pack, sequence_length, written)
                waiting = []
    _append(train, waiting, pack, sequence_length, written)
    train.finish()
    heldout.finish()
    written.documents, written.heldout_documents = train.documents, heldout.documents
    written.tokens = sum(split.tokens for split in (train, heldout) if split.documents)
    return written


def _append(
    writer: SplitWriter, blocks: list[Documents], pack: str, sequence_length: int, written: Written
) -> None:
    if pack == "concatenate":
        for block in blocks:
            for document in block.one_by_one():
                writer.add(document)
        return
    if not blocks:
        return
    lengths = np.concatenate([block.stream_lengths for block in blocks])
    order = packing.plan(lengths, sequence_length, writer.tokens % sequence_length)
    laid = lengths[order]
    fits = laid <= sequence_length
    cut = packing.are_cut(writer.tokens - 1 + np.cumsum(laid) - laid, laid, sequence_length)
    written.fitting += int(fits.sum())
    written.cut += int((cut & fits).sum())
    first = np.cumsum([0] + [block.count for block in blocks])
    which = np.searchsorted(first, order, side="right") - 1
    for number, block in zip((order - first[which]).tolist(), which.tolist(), strict=True):
        writer.add(blocks[block].document(number))


class _Compressors:
    """What general compressors make of the held-out text: figures for a model to beat."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._parts: list[bytes] | None = []
        self._size = 0

    def add(self, document: Encoded) -> None:
        self._size += document.text_bytes
        if self._size > COMPRESS_LIMIT:
            self._parts = None
        if self._parts is not None:
            self._parts.append(self._tokenizer.decode(document.tokens).encode())

    def bits_per_byte(self) -> dict[str, JsonValue]:
        """Bits per UTF-8 byte of `xz -9e` and `gzip -9`; empty for too much text, or none."""
        text = b"".join(self._parts or [])
        if len(text) != self._size or not text:  # or tokens that do not give the text back
            return {}
        xz, gz = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME), gzip.compress(text, 9)
        return {"xz_bits_per_byte": 8 * len(xz) / len(text), "gzip_bits_per_byte": 8 * len(gz) / len(text)}
