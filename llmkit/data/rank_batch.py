"""One rank's part of a global batch, and how rows become its micro-batches."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh64_intdigest

from llmkit.batch import Rows, split_pairs
from llmkit.data.live.schedule import LaneKey


class LiveProgress(NamedTuple):
    """What a step has read of live sources.

    cursors: of each (source, lane) that moved, where it stands after the step. left_out: of each source, by
    index, the documents that were left out or mended, by reason. notes: what the user should know.
    """

    cursors: dict[LaneKey, list[int]]
    left_out: dict[int, Counter[str]]
    notes: list[str]


class RankBatch(NamedTuple):
    """One rank's part of a global batch.

    micro_batches: all of the same shape (micro_batch_size, sequence_length), on the host; as many on
    every rank. own_targets: targets in them. targets: those of the global batch, over all
    ranks; None where it takes all ranks to know, because sources have tokens that are no targets. rows:
    rows of the global batch. first: position of the first of them. sources: (micro-batches,
    micro_batch_size), the source each row is from, -1 for a row that only fills. hashes: (rows of this
    rank,) xxh64 of tokens and labels, if asked for. positions: (rows of this rank,) in the order, without
    meaning for rows that only fill.
    """

    micro_batches: list[Rows]
    own_targets: int
    targets: int | None
    rows: int
    first: int
    sources: np.ndarray
    hashes: np.ndarray | None
    positions: np.ndarray
    progress: LiveProgress = LiveProgress({}, {}, [])

    @property
    def hash(self) -> int:
        """One hash of all rows of this rank, below 2^63; 0 if rows are not hashed."""
        return 0 if self.hashes is None else xxh64_intdigest(self.hashes.tobytes()) >> 1


class Block(NamedTuple):
    """The rows of some steps in one piece of memory, page-locked where there is a GPU.

    text: (rows, T + 1) int32. is_target: (rows, T) bool, None = all are. reference: of pairs, (rows, 2)
    float32, the log-probabilities under the reference model. sources: (rows,), -1 for a row that only fills.
    """

    text: Tensor
    is_target: Tensor | None
    reference: Tensor | None
    sources: np.ndarray

    def micro_batches(self, size: int, sources: int, boundary: int | None, *, pairs: bool) -> list[Rows]:
        """The rows in micro-batches of `size`, one after the other.

        sources: how many there are. boundary: the token that ends a document, where positions attend only
        within theirs. pairs: whether a row is a pair of sequences.
        """
        text, is_target, sequences = self.text, self.is_target, size
        if pairs:
            assert is_target is not None, "pairs have tokens that are no targets"
            text, is_target, sequences = split_pairs(text), split_pairs(is_target, 0), 2 * size
        texts = text.split(sequences)
        none: list[None] = [None] * len(texts)
        return [
            Rows.of(tokens, targets, boundary, reference, source)
            for tokens, targets, reference, source in zip(
                texts,
                none if is_target is None else is_target.split(sequences),
                none if self.reference is None else self.reference.split(size),
                none if sources == 1 else self._is_of(sources).split(size),
                strict=True,
            )
        ]

    def hashes(self) -> np.ndarray:
        """(rows,) uint64: xxh64 of each row's tokens, and of its targets where not all are; 0 for rows that
        only fill."""
        hashes = np.zeros(len(self.text), dtype=np.uint64)
        text = self.text.numpy()
        is_target = None if self.is_target is None else self.is_target.numpy()
        for row in np.flatnonzero(self.sources >= 0):
            hashes[row] = xxh64_intdigest(text[row].data)
            if is_target is not None and not is_target[row].all():
                hashes[row] = xxh64_intdigest(is_target[row].data, seed=int(hashes[row]))
        return hashes

    def _is_of(self, sources: int) -> Tensor:
        """(rows, sources) bool, see `Rows.sources`."""
        index = torch.from_numpy(self.sources.reshape(-1, 1))
        is_of = torch.empty((len(index), sources), dtype=torch.bool, pin_memory=self.text.is_pinned())
        return torch.eq(index, torch.arange(sources), out=is_of)
