"""Held-out batches: every target after the first end-of-text is one exactly once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from llmkit.batch import IGNORE, Batch
from llmkit.data.blocks import document_numbers
from llmkit.data.prepared import Prepared
from llmkit.data.shards.reader import ShardReader

COUNTED = 1 << 20
"""Marks of targets that are counted at a time."""


class HeldOut:
    """The held-out rows of all sources, one source after the other; may be iterated again and again.

    Row g is read by the rank g % world_size. All batches have the shape (batch_rows, sequence_length) and
    all ranks as many of them; what does not fill a row or a batch is ignored (labels IGNORE).

    text_bytes: UTF-8 bytes of all the held-out documents, over all ranks, for bits per byte.
    targets: labels other than IGNORE, over all ranks.
    """

    def __init__(self, prepared: Prepared, batch_rows: int, rank: int = 0, world_size: int = 1) -> None:
        assert batch_rows > 0, batch_rows
        assert 0 <= rank < world_size, (rank, world_size)
        self._prepared, self._batch_rows = prepared, batch_rows
        self._rank, self._world = rank, world_size
        self.text_bytes = prepared.heldout_bytes
        self.targets = sum(_count_targets(source.reader) for source in prepared.heldout)
        length = prepared.sequence_length
        self._rows = [
            (source.reader, start)
            for source in prepared.heldout
            for start in range(0, source.reader.tokens - 1, length)
        ]

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-len(self._rows) // (self._world * self._batch_rows))

    def __iter__(self) -> Iterator[Batch]:
        length, tokenizer = self._prepared.sequence_length, self._prepared.tokenizer
        for batch in range(len(self)):
            tokens = np.full((self._batch_rows, length), tokenizer.end_of_text_id, dtype=np.int32)
            labels = np.full((self._batch_rows, length), IGNORE, dtype=np.int32)
            mine = range(batch * self._batch_rows, (batch + 1) * self._batch_rows)
            for place, number in enumerate(self._rank + self._world * k for k in mine):
                if number >= len(self._rows):
                    break
                reader, start = self._rows[number]
                stop = min(start + length + 1, reader.tokens)
                text, is_target = reader.read(start, stop), reader.read_targets(start, stop)
                tokens[place, : text.size - 1] = text[:-1]
                labels[place, : text.size - 1] = text[1:]
                if is_target is not None:
                    labels[place, : text.size - 1][~is_target[1:]] = IGNORE
            documents = None
            if self._prepared.document_masks:
                documents = torch.from_numpy(document_numbers(tokens, tokenizer.end_of_text_id))
            yield Batch(torch.from_numpy(tokens), torch.from_numpy(labels), documents)


def _count_targets(reader: ShardReader) -> int:
    """Targets of a stream: all its tokens but the first, or those that are marked."""
    count = 0
    for start in range(1, reader.tokens, COUNTED):
        stop = min(start + COUNTED, reader.tokens)
        is_target = reader.read_targets(start, stop)
        count += stop - start if is_target is None else int(is_target.sum())
    return count
