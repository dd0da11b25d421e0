"""Training batches: the same global batch at every step for every number of ranks.

Position g of the global order belongs to the rank g % world_size. A step takes the next `batch_rows`
positions; where they do not divide evenly, ranks with fewer rows fill up with rows that hold no target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmkit.batch import IGNORE, Batch
from llmkit.config import schema
from llmkit.data.order import Order
from llmkit.data.position import Fingerprint, Position, check_position
from llmkit.data.prefetch import Prefetch
from llmkit.data.prepared import Prepared

ORDER_ROWS = 4096
"""Rows, at least, whose order is computed at a time: a call alone costs as much as some hundred rows."""
BLOCK_TOKENS = 1 << 18
"""Tokens gathered at a time, unless a step has more."""
BLOCKS_AHEAD = 2


@dataclass(frozen=True)
class Step:
    """One rank's part of a global batch.

    micro_batches: all of the same shape (micro_batch_size, sequence_length), on the host; as many on
    every rank. targets: labels other than IGNORE in the global batch, over all ranks. rows: rows of the
    global batch. sources: (micro-batches, micro_batch_size), the source each row is from, -1 for a row
    that only fills.
    """

    micro_batches: list[Batch]
    targets: int
    rows: int
    sources: np.ndarray


@dataclass(frozen=True)
class _Block:
    """Some steps of one rank in one piece of memory. tokens, labels, documents: (steps * rows, T)."""

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None
    sources: np.ndarray  # (steps, rows)


def document_numbers(tokens: np.ndarray, end_of_text_id: int) -> np.ndarray:
    """Number of each position's document in its row, int32, the shape of `tokens`: (rows, T).

    End-of-text as an input opens the next document.
    """
    return np.cumsum(tokens == end_of_text_id, axis=1, dtype=np.int32)


def _round_up(count: int, multiple: int) -> int:
    return (count + multiple - 1) // multiple * multiple


class TrainLoader:
    """An endless iterator of steps; epochs of each source follow each other.

    batch_rows: rows of a global batch. micro_batch_size: rows of a micro-batch, per rank. position: rows
    consumed before, to go on from. rank, world_size: among the data-parallel ranks.

    `position` is at all times the number of rows of the steps handed out so far.
    """

    def __init__(
        self,
        prepared: Prepared,
        config: schema.Data,
        seed: int,
        batch_rows: int,
        micro_batch_size: int,
        position: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert min(batch_rows, micro_batch_size) > 0, (batch_rows, micro_batch_size)
        assert 0 <= rank < world_size, (rank, world_size)
        assert position >= 0, position
        assert config.sequence_length == prepared.sequence_length, "prepared with other settings"
        self.position = position
        self._prepared, self._length, self._masks = prepared, config.sequence_length, config.document_masks
        self._batch_rows, self._micro = batch_rows, micro_batch_size
        self._rank, self._world = rank, world_size
        self._rows = _round_up(_round_up(batch_rows, world_size) // world_size, micro_batch_size)
        self._readers = [source.reader for source in prepared.train]
        self._weights = [source.weight for source in prepared.train]
        self._order = Order(seed, [reader.row_count(self._length) for reader in self._readers], self._weights)
        self._ahead: Prefetch[_Block] | None = None
        self._steps: Iterator[Step] = iter(())
        self._pin = torch.cuda.is_available()

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        step = next(self._steps, None)
        if step is None:
            if self._ahead is None:
                self._ahead = Prefetch(self._blocks(self.position), BLOCKS_AHEAD)
            self._steps = self._cut(next(self._ahead))
            step = next(self._steps)
        self.position += self._batch_rows
        return step

    def state(self) -> dict[str, Any]:
        """Where the order stands, as JSON; equal on all ranks."""
        segments = [(segment.start, list(segment.weights)) for segment in self._order.segments]
        fingerprint = Fingerprint.model_validate(self._prepared.fingerprint)
        position = Position(
            rows=self.position, seed=self._order.seed, segments=segments, fingerprint=fingerprint
        )
        return position.model_dump(mode="json")

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises UserError that names each difference if `state` belongs to another seed or other data."""
        check_position(state, self._order.seed, self._prepared.fingerprint)

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on after `state`. Other weights than then hold from here on, with no row lost or repeated."""
        assert self._ahead is None, "load_state comes before the first step"
        position = check_position(state, self._order.seed, self._prepared.fingerprint)
        weights = [weights for _, weights in position.segments]
        self._order = Order(self._order.seed, self._order.sizes, weights[0])
        for start, changed in position.segments[1:]:
            self._order.reweight(start, changed)
        if weights[-1] != self._weights:
            self._order.reweight(position.rows, self._weights)
        self.position = position.rows

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.close()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cut(self, block: _Block) -> Iterator[Step]:
        steps, rows = block.sources.shape
        targets = self._batch_rows * self._length
        for step in range(steps):
            parts = []
            for first in range(step * rows, (step + 1) * rows, self._micro):
                part = slice(first, first + self._micro)
                documents = None if block.documents is None else block.documents[part]
                parts.append(Batch(block.tokens[part], block.labels[part], documents))
            yield Step(parts, targets, self._batch_rows, block.sources[step].reshape(-1, self._micro))

    def _blocks(self, position: int) -> Iterator[_Block]:
        """Blocks of steps from `position` on; the first ones are small, so that training starts at once."""
        most = max(1, BLOCK_TOKENS // (self._rows * self._length))
        steps = 1
        while True:
            located = _round_up(ORDER_ROWS, self._rows) // self._rows
            starts = position + self._batch_rows * np.arange(located)
            first = starts + (self._rank - starts) % self._world
            positions = first[:, None] + self._world * np.arange(self._rows)
            real = positions < starts[:, None] + self._batch_rows
            sources = np.full(positions.shape, -1, dtype=np.int64)
            rows = np.zeros(positions.shape, dtype=np.int64)
            sources[real], _, rows[real] = self._order.at(positions[real])
            done = 0
            while done < located:
                part = slice(done, done + steps)
                yield self._gather(sources[part], rows[part])
                done += steps
                steps = min(2 * steps, most)
            position += self._batch_rows * located

    def _gather(self, sources: np.ndarray, rows: np.ndarray) -> _Block:
        flat, index = sources.ravel(), rows.ravel()
        present = np.unique(flat)
        if present.size == 1 and present[0] >= 0:
            text = self._readers[present[0]].rows(index, self._length)
        else:
            end_of_text = self._prepared.tokenizer.end_of_text_id
            text = np.full((flat.size, self._length + 1), end_of_text, dtype=np.int32)
            for source in present[present >= 0]:
                here = flat == source
                text[here] = self._readers[source].rows(index[here], self._length)
        # The model's index type, made here once for all.
        tokens, labels = text[:, :-1].astype(np.int64), text[:, 1:].astype(np.int64)
        labels[flat < 0] = IGNORE
        documents = None
        if self._masks:
            documents = self._tensor(document_numbers(tokens, self._prepared.tokenizer.end_of_text_id))
        return _Block(self._tensor(tokens), self._tensor(labels), documents, sources)

    def _tensor(self, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self._pin else tensor
