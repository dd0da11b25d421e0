"""Records that are tokenized together, and documents that are shuffled and written together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmkit.data.building.stats import BuildStats
from llmkit.data.shards.documents import Documents
from llmkit.data.shards.writer import ShardWriter
from llmkit.data.shuffle import key, permute
from llmkit.data.sources.reader import RawRecord, SourceReader
from llmkit.data.sources.records import EMPTY, REPAIRED, SPELLED_END, Ids, Record, Skipped
from llmkit.data.tokens.encode import Encoded, RecordEncoder, text_of
from llmkit.data.tokens.tokenizer import utf8_size
from llmkit.errors import UserError

SHUFFLE_STREAM = 12
"""Stream id mixed into the keys of the order, so that it is independent of other random streams."""


@dataclass
class TokenizeBatch:
    """Records that are tokenized together. size: their characters. text: those of all before, too.

    stats: gets what is left out, and the size of the text.
    """

    reader: SourceReader
    encoder: RecordEncoder
    stats: BuildStats
    threads: bool
    size: int = 0
    text: int = 0
    _records: list[tuple[Record, int, int, bool]] = field(default_factory=list)

    def add(self, candidate: RawRecord, split: int, heldout: bool) -> None:
        """Take a record of a split; why it cannot be used is counted."""
        record = candidate.record
        if isinstance(record, Skipped):
            self.stats.left_out[record.reason] += 1
            return
        if candidate.repaired:
            self.stats.left_out[REPAIRED] += 1
        self._records.append((record, split, candidate.number, heldout))
        self.size += 4 * int(record.ids.size) if isinstance(record, Ids) else len(text_of(record))

    def encode(self) -> list[tuple[Encoded, bool]]:
        """The documents, and whether each is held out; the batch is empty afterwards."""
        found, stats = [], self.stats
        records = [record for record, *_ in self._records]
        encoded = self.encoder.encode(records, self.threads) if records else []
        for document, (record, split, number, heldout) in zip(encoded, self._records, strict=True):
            text = text_of(record)
            self.text += len(text)
            if not isinstance(document, Skipped):
                found.append((document, heldout))
                if self.encoder.spells_end(record):
                    stats.left_out[SPELLED_END] += 1
                stats.text_bytes += document.text_bytes if isinstance(record, Ids) else utf8_size(text)
            elif self.reader.errors == "raise" and document.reason != EMPTY:
                where = self.reader.location(split, number)
                raise UserError(f"{where}: {document.detail}; mend the record, or set data.errors to skip")
            else:
                stats.left_out[document.reason] += 1
        self._records, self.size = [], 0
        return found


def to_documents(documents: Sequence[Encoded], writer: ShardWriter) -> Documents:
    """Documents as `writer` stores them."""
    end = np.array([writer.end_of_text_id], writer.stored)
    tokens = [each for document in documents for each in (document.tokens.astype(writer.stored), end)]
    targets: list[Any] = []
    if not all(document.targets is None and document.end_is_target for document in documents):
        for document in documents:
            every = np.ones(document.tokens.size, dtype=bool)
            targets += [every if document.targets is None else document.targets, [document.end_is_target]]
    return Documents(
        np.concatenate(tokens) if tokens else end[:0],
        np.array([document.tokens.size + 1 for document in documents], dtype=np.int64),
        sum(document.text_bytes for document in documents),
        np.concatenate(targets) if targets else None,
    )


class ShuffleBuffer:
    """Documents that are shuffled among each other. size: bytes of tokens, or text where that is more."""

    def __init__(self, part: int, writer: ShardWriter, stats: BuildStats) -> None:
        self.size = 0
        self._part, self._writer, self._blocks = part, writer, stats.blocks
        self._documents: tuple[list[Encoded], list[Encoded]] = ([], [])

    def add(self, documents: Sequence[tuple[Encoded, bool]]) -> None:
        """Take documents, with whether each is held out."""
        for encoded, heldout in documents:
            tokens = encoded.tokens.astype(self._writer.stored)
            self._documents[heldout].append(encoded._replace(tokens=tokens))
            self.size += max(tokens.nbytes, encoded.text_bytes)  # of a chat only the answers are text

    def write(self) -> None:
        """Write the documents, those to train on first, and empty the buffer."""
        block = []
        for heldout, documents in enumerate(self._documents):
            keys = key(SHUFFLE_STREAM, self._part, len(self._blocks), heldout)
            order = permute(np.arange(len(documents)), len(documents), keys)
            shuffled = to_documents([documents[index] for index in order.tolist()], self._writer)
            self._writer.add_all(shuffled)
            block.append((len(documents), shuffled.text_bytes))
        self._blocks.append((block[0], block[1]))
        self.size, self._documents = 0, ([], [])
