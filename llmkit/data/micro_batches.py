"""Rows of a block as the micro-batches of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh64_intdigest

from llmkit.batch import Rows, split_pairs
from llmkit.data.blocks import RowsOfBlock


class Step(NamedTuple):
    """One rank's part of a global batch.

    micro_batches: all of the same shape (micro_batch_size, sequence_length), on the host; as many on
    every rank. own_targets: targets in them. targets: those of the global batch, over all
    ranks; None where it takes all ranks to know, because sources have tokens that are no targets. rows:
    rows of the global batch. first: position of the first of them. sources: (micro-batches,
    micro_batch_size), the source each row is from, -1 for a row that only fills. hashes: (rows of this
    rank,) xxh64 of tokens and labels, if asked for. positions: (rows of this rank,) in the order.
    """

    micro_batches: list[Rows]
    own_targets: int
    targets: int | None
    rows: int
    first: int
    sources: np.ndarray
    hashes: np.ndarray | None
    positions: np.ndarray

    @property
    def hash(self) -> int:
        """One hash of all rows of this rank, below 2^63; 0 if rows are not hashed."""
        return 0 if self.hashes is None else xxh64_intdigest(self.hashes.tobytes()) >> 1


def micro_batches_of(block: RowsOfBlock, size: int, sources: int, boundary: int | None) -> list[Rows]:
    """Those of all steps, one after the other.

    size: rows of a micro-batch. sources: how many there are. boundary: the token that ends a document, where
    positions attend only within theirs.
    """
    text, is_target, sequences = block.text, block.is_target, size
    if block.has_pairs:
        assert is_target is not None, "pairs have tokens that are no targets"
        text, is_target, sequences = split_pairs(text), split_pairs(is_target, 0), 2 * size
    texts = text.split(sequences)
    masks = [None] * len(texts) if is_target is None else is_target.split(sequences)
    known = [None] * len(texts) if block.reference is None else block.reference.split(size)
    return [
        Rows.of(text, is_target, boundary, reference, source)
        for text, is_target, reference, source in zip(
            texts, masks, known, _sources_of_rows(block, size, sources), strict=True
        )
    ]


def _sources_of_rows(block: RowsOfBlock, size: int, sources: int) -> Sequence[Tensor | None]:
    """`Rows.sources` of each micro-batch; None where there is only one source."""
    if sources == 1:
        return [None] * (block.sources.size // size)
    number = torch.from_numpy(block.sources.reshape(-1, 1))
    shape = (len(number), sources)
    is_of = torch.empty(shape, dtype=torch.bool, pin_memory=block.text.is_pinned())
    torch.eq(number, torch.arange(sources), out=is_of)
    return is_of.split(size)
