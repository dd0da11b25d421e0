"""Writes the shards of a source from its documents, in order."""

from __future__ import annotations

import gzip
import lzma
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import JsonValue

from llmkit.data.building import packing
from llmkit.data.building.batch import to_documents
from llmkit.data.building.duplicates import DuplicateCounter
from llmkit.data.building.parts import read_part
from llmkit.data.building.stats import BuildStats
from llmkit.data.shards.documents import Documents
from llmkit.data.shards.writer import ShardWriter
from llmkit.data.tokens.encode import Encoded
from llmkit.data.tokens.tokenizer import Tokenizer

PLAN_TOKENS = 32 << 20
"""Tokens whose documents are packed together: enough for every gap to find its document."""
COMPRESS_LIMIT = 2 << 20
"""Held-out bytes up to which general compressors are run for comparison: they take a second for a MB."""


class StreamWriter:
    """Writes a token stream of a source, to train on or held out; without a document, no folder remains.

    compare: run general compressors on the text, as far as it is not too much.
    """

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer, compare: bool) -> None:
        self.documents = 0
        self.tokens = 1
        """Of the stream so far, which begins with an end-of-text."""
        self._folder, self._tokenizer = folder, tokenizer
        self._writer = ShardWriter(
            folder, name, tokenizer.hash, tokenizer.vocab_size, tokenizer.end_of_text_id
        )
        self._compared: list[Documents] | None = [] if compare else None

    def add(self, documents: Documents) -> None:
        """Append documents."""
        self._writer.add_all(documents)
        self.documents += documents.lengths.size
        self.tokens += documents.tokens.size
        if self._compared is not None:
            self._compared.append(documents)
            if sum(each.text_bytes for each in self._compared) > COMPRESS_LIMIT:
                self._compared = None

    def add_encoded(self, documents: Sequence[Encoded]) -> None:
        """Append documents that were just tokenized."""
        self.add(to_documents(documents, self._writer))

    def finish(self) -> None:
        """Make the folder readable; if there is no document, it goes."""
        self._writer.finish(compressed(self._compared or [], self._tokenizer))
        if self.documents == 0:
            shutil.rmtree(self._folder)


def compressed(parts: Iterable[Documents], tokenizer: Tokenizer) -> dict[str, JsonValue]:
    """Bits per UTF-8 byte of `xz -9e` and `gzip -9`, figures for a model to beat.

    Empty for no text, or tokens that do not give it back.
    """
    parts = list(parts)
    text = b"".join(tokenizer.decode(tokens).encode() for part in parts for tokens in part.one_by_one())
    if len(text) != sum(part.text_bytes for part in parts) or not text:
        return {}
    xz, gz = lzma.compress(text, preset=9 | lzma.PRESET_EXTREME), gzip.compress(text, 9)
    return {"xz_bits_per_byte": 8 * len(xz) / len(text), "gzip_bits_per_byte": 8 * len(gz) / len(text)}


def write_shards(
    parts: Iterable[Path],
    folder: Path,
    name: str,
    tokenizer: Tokenizer,
    pack: Literal["concatenate", "best_fit"],
    sequence_length: int,
    compare: bool,
) -> BuildStats:
    """Write `folder`/train and `folder`/heldout from the parts of a source, as they come.

    Memory does not grow with the source, and the result does not depend on when parts come.
    """
    train = StreamWriter(folder / "train", name, tokenizer, compare=False)
    heldout = StreamWriter(folder / "heldout", name, tokenizer, compare)
    stats, copies = BuildStats(), DuplicateCounter(folder)
    waiting: list[Documents] = []
    for path in parts:
        found, blocks = read_part(path)
        stats.add_part(found)
        for block, held in blocks:
            copies.add(block, heldout=False)
            copies.add(held, heldout=True)
            heldout.add(held)
            if pack == "concatenate":
                train.add(block)
                continue
            waiting.append(block)
            if sum(each.tokens.size - each.lengths.size for each in waiting) >= PLAN_TOKENS:
                _add_packed(train, Documents.join(waiting), sequence_length, stats)
                waiting = []
    if waiting:
        _add_packed(train, Documents.join(waiting), sequence_length, stats)
    train.finish()
    heldout.finish()
    stats.documents, stats.heldout_documents = train.documents, heldout.documents
    stats.tokens = sum(stream.tokens for stream in (train, heldout) if stream.documents)
    stats.duplicates, stats.heldout_in_train = copies.count()
    return stats


def _add_packed(writer: StreamWriter, documents: Documents, sequence_length: int, stats: BuildStats) -> None:
    order = packing.plan(documents.lengths, sequence_length, writer.tokens % sequence_length)
    packed = documents.reordered(order)
    fits = packed.lengths <= sequence_length
    first = writer.tokens - 1 + np.cumsum(packed.lengths) - packed.lengths
    cut = packing.are_cut(first, packed.lengths, sequence_length)
    stats.fitting += int(fits.sum())
    stats.cut += int((cut & fits).sum())
    writer.add(packed)
