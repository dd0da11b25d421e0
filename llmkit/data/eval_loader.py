"""Held-out batches: every token after the first end-of-text is a target exactly once.

With rows of T = 4 and the held-out stream 256 97 98 99 256 100 101 256 of one source, 7 targets:

    row 0    inputs 256  97  98  99    labels  97  98  99 256
    row 1    inputs 256 100 101 256    labels 100 101 256  .      . = no target: the stream ends before it

On 2 ranks with batches of 2 rows each rank has one batch: a row of these, and one that holds no target.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch

from llmkit.batch import Rows, split_pairs
from llmkit.data.prepared import PreparedData


class EvalSource(NamedTuple):
    """What is held out of a source. rows: of those that this rank reads, in their order. targets,
    text_bytes: over all ranks, as in `EvalLoader`."""

    name: str
    rows: slice
    targets: int
    text_bytes: int


class EvalLoader:
    """The held-out rows of all sources, one source after the other; may be iterated again and again.

    Row g is read by the rank g % world_size. All batches have the shape (batch_rows, sequence_length) and
    all ranks as many of them; what does not fill a row or a batch is no target. Of pairs: (2 * batch_rows,
    half of that length), where a row is a pair.

    text_bytes: UTF-8 bytes of all the held-out documents, over all ranks, for bits per byte; 0 for pairs.
    targets: how many, over all ranks; of pairs, their number. length: tokens of
    a row.
    """

    def __init__(self, prepared: PreparedData, batch_rows: int, rank: int = 0, world_size: int = 1) -> None:
        assert batch_rows > 0, batch_rows
        assert 0 <= rank < world_size, (rank, world_size)
        self._prepared, self._batch_rows = prepared, batch_rows
        self._rank, self._world = rank, world_size
        self.text_bytes = 0 if prepared.has_pairs else prepared.heldout_bytes
        self.targets = prepared.heldout_targets
        self.length = length = prepared.sequence_length
        self._held = [(source, source.heldout) for source in prepared.sources if source.heldout is not None]
        self._starts = [range(0, rows.tokens - 1, length) for _, rows in self._held]
        self._ends = list(accumulate(map(len, self._starts)))  # rows of each source and those before it
        self._rows = self._ends[-1] if self._ends else 0

    @cached_property
    def sources(self) -> list[EvalSource]:
        """What is held out of each source."""
        return [self._source(index) for index in range(len(self._ends))]

    def _source(self, index: int) -> EvalSource:
        (source, rows), pairs = self._held[index], self._prepared.has_pairs
        first = self._ends[index - 1] if index else 0
        low, high = (-(-(row - self._rank) // self._world) for row in (first, self._ends[index]))
        targets = rows.documents if pairs else rows.count_targets()
        text_bytes = 0 if pairs else rows.index.text_bytes
        return EvalSource(source.name, slice(low, high), targets, text_bytes)

    def __len__(self) -> int:
        """Batches of each rank."""
        return -(-self._rows // (self._world * self._batch_rows))

    def __iter__(self) -> Iterator[Rows]:
        length, tokenizer = self._prepared.sequence_length, self._prepared.tokenizer
        for batch in range(len(self)):
            text = np.full((self._batch_rows, length + 1), tokenizer.end_of_text_id, dtype=np.int32)
            is_target = np.zeros((self._batch_rows, length), dtype=bool)
            reference = np.zeros((self._batch_rows, 2), dtype=np.float32)
            mine = range(batch * self._batch_rows, (batch + 1) * self._batch_rows)
            for slot, position in enumerate(self._rank + self._world * k for k in mine):
                if position >= self._rows:
                    break
                index = bisect_right(self._ends, position)
                (source, reader), row = self._held[index], position - self._ends[index]  # from the last
                start = self._starts[index][row]
                stop = min(start + length + 1, reader.tokens)
                known = reader.read_targets(start, stop)
                text[slot, : stop - start] = reader.read(start, stop)
                is_target[slot, : stop - start - 1] = True if known is None else known[1:]
                if source.heldout_reference is not None:
                    reference[slot] = source.heldout_reference[row]
            boundary = tokenizer.end_of_text_id if self._prepared.document_masks else None
            tokens, targets = torch.from_numpy(text), torch.from_numpy(is_target)
            if self._prepared.has_pairs:
                known_rows = torch.from_numpy(reference)
                yield Rows.of(split_pairs(tokens), split_pairs(targets, 0), boundary, known_rows)
            else:
                yield Rows.of(tokens, targets, boundary)
