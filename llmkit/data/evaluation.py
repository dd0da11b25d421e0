"""Held-out batches: every target after the first end-of-text is one exactly once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import torch

from llmkit.batch import Rows
from llmkit.data.prepared import Prepared


class HeldOut:
    """The held-out rows of all sources, one source after the other; may be iterated again and again.

    Row g is read by the rank g % world_size. All batches have the shape (batch_rows, sequence_length) and
    all ranks as many of them; what does not fill a row or a batch is no target.

    text_bytes: UTF-8 bytes of all the held-out documents, over all ranks, for bits per byte.
    targets: how many, over all ranks.
    """

    def __init__(self, prepared: Prepared, batch_rows: int, rank: int = 0, world_size: int = 1) -> None:
        assert batch_rows > 0, batch_rows
        assert 0 <= rank < world_size, (rank, world_size)
        self._prepared, self._batch_rows = prepared, batch_rows
        self._rank, self._world = rank, world_size
        self.text_bytes = prepared.heldout_bytes
        self.targets = prepared.heldout_targets
        length = prepared.sequence_length
        self._starts = [range(0, source.reader.tokens - 1, length) for source in prepared.heldout]
        self._ends = list(accumulate(map(len, self._starts)))  # rows of each source and those before it
        self._rows = self._ends[-1] if self._ends else 0

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-self._rows // (self._world * self._batch_rows))

    def __iter__(self) -> Iterator[Rows]:
        length, tokenizer = self._prepared.sequence_length, self._prepared.tokenizer
        for batch in range(len(self)):
            text = np.full((self._batch_rows, length + 1), tokenizer.end_of_text_id, dtype=np.int32)
            is_target = np.zeros((self._batch_rows, length), dtype=bool)
            mine = range(batch * self._batch_rows, (batch + 1) * self._batch_rows)
            for place, number in enumerate(self._rank + self._world * k for k in mine):
                if number >= self._rows:
                    break
                source = bisect_right(self._ends, number)
                reader = self._prepared.heldout[source].reader
                start = self._starts[source][number - self._ends[source]]  # counted from the last
                stop = min(start + length + 1, reader.tokens)
                known = reader.read_targets(start, stop)
                text[place, : stop - start] = reader.read(start, stop)
                is_target[place, : stop - start - 1] = True if known is None else known[1:]
            boundary = tokenizer.end_of_text_id if self._prepared.document_masks else None
            yield Rows.of(torch.from_numpy(text), torch.from_numpy(is_target), boundary)
