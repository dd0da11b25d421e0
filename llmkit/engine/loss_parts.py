"""Of what a loss is made: its sums by data source, and by position in the document."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from llmkit.batch import IGNORE, Batch, pick

FIRST_POSITIONS = 16
"""Positions of the first range; each further one reaches twice as far."""


def position_ranges(length: int) -> list[tuple[int, int]]:
    """Half-open ranges of positions in a row of `length` tokens: [0, 16), [16, 32), [32, 64), ...."""
    ends = [0, FIRST_POSITIONS]
    while ends[-1] < length:
        ends.append(2 * ends[-1])
    return [(low, min(high, length)) for low, high in pairwise(ends)]


@torch.no_grad()
def sums_by_position(nats: Tensor, batch: Batch) -> Tensor:
    """(ranges, 2) fp64: nats and number of the targets in each of `position_ranges`.

    nats: (batch, seq) fp32, of each label. A position counts from the beginning of its document where
    documents are masked from each other, else from that of its row: it is how many tokens were seen before.
    """
    is_target = batch.labels != IGNORE
    found = []
    if batch.documents is None and batch.piece is None:
        for low, high in position_ranges(batch.labels.shape[1]):
            wanted = is_target[:, low:high]
            found += [nats[:, low:high].where(wanted, 0.0).sum(dtype=torch.float64), wanted.sum().double()]
    else:
        position = _positions(batch)
        for low, high in position_ranges(batch.row_length):
            wanted = is_target & (position >= low) & (position < high)
            found += [nats.where(wanted, 0.0).sum(dtype=torch.float64), wanted.sum().double()]
    return torch.stack(found).view(-1, 2)


def _positions(batch: Batch) -> Tensor:
    """(batch, seq) or (1, seq) int64: each token's position in its document, or in its row without masks."""
    piece = batch.piece
    if piece is None:
        assert batch.documents is not None
        return positions_in_documents(batch.documents)
    if piece.documents is not None:
        return pick(positions_in_documents(piece.documents), piece.ranges)
    return pick(torch.arange(piece.length, device=batch.labels.device)[None], piece.ranges)


def loss_at(sums: Sequence[float], length: int) -> dict[str, float]:
    """Columns of the mean loss by position, where there are targets; sums: of `sums_by_position`, flat.

    length: of a row.
    """
    values = zip(position_ranges(length), sums[::2], sums[1::2], strict=True)
    return {f"loss_at/{low}-{high - 1}": nats / count for (low, high), nats, count in values if count}


def positions_in_documents(documents: Tensor) -> Tensor:
    """documents: (batch, seq), as in `Batch` -> (batch, seq) int64: 0 at the first token of each in a row."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.zeros_like(index)
    begins[:, 1:] = index[:, 1:].where(documents[:, 1:] != documents[:, :-1], 0)
    return index - begins.cummax(1).values


def sums_by_source(rows: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """(sources, 2) fp64: nats and number of the targets of each source.

    rows: of each micro-batch the nats and the targets of its rows, (batch,) each, and which source each row
    is of, (batch, sources) bool. A row that is not finite spoils the sum of its own source only.
    """
    nats, targets, sources = (torch.cat(each) for each in zip(*rows, strict=True))
    values = torch.stack((nats.double(), targets.double()), 1)
    return torch.where(sources[:, :, None], values[:, None], 0.0).sum(0)
