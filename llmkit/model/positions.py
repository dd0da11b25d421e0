"""Positions of the tokens of a forward pass in their sequences.

The model asks here, and nowhere else, which positions its tokens have: context parallelism, under which a
rank holds a piece of each row, changes `Span` and what attention exchanges, and no other layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.batch import Ranges, RowPiece, pick
from llmkit.model.cache import CacheRows
from llmkit.parallel.collectives import all_gather
from llmkit.parallel.context import WHOLE_ROWS, ContextParallel

RopeTables = tuple[Tensor, Tensor]
"""Cosines and sines, (positions, head_dim // 2) fp32 each; see `llmkit.model.rope`.

In a pass whose rows have positions of their own: (batch, seq, head_dim // 2)."""


class BlockInputs(NamedTuple):
    """What a block is given beside the residual stream, the same for all blocks.

    rope: the tables of these positions, None without rotary positions; sliding_rope: those of layers with a
    window, where they have others. documents: (batch, seq) int32 or None, bounds: theirs, see
    `llmkit.batch.Batch`. cache: rows of keys and values of earlier positions, to be extended by these.
    tokens: (batch, seq), for value embeddings. begins: (batch, seq) bool, the first tokens of documents, for
    what looks at the position before. embedding: what entered the first block, bigram: the vectors of
    bigrams, both (batch, seq, hidden) or this rank's piece, for `ResidualScalars`. piece: as in `Batch`.
    limited: whether experts take only so many tokens as they have room for (`Moe.capacity_factor`).
    """

    rope: RopeTables | None = None
    documents: Tensor | None = None
    bounds: Tensor | None = None
    cache: CacheRows | None = None
    tokens: Tensor | None = None
    begins: Tensor | None = None
    embedding: Tensor | None = None
    bigram: Tensor | None = None
    sliding_rope: RopeTables | None = None
    piece: RowPiece | None = None
    limited: bool = False


@dataclass(frozen=True)
class Span:
    """The positions that the tokens of one forward pass have in each sequence: those of some ranges.

    own: (batch, seq) int64, the positions where each sequence has its own instead; else None.
    """

    ranges: Ranges
    own: Tensor | None = None

    @classmethod
    def of(cls, tokens: Tensor, cache: CacheRows | None, piece: RowPiece | None = None) -> Span:
        """The positions of tokens (batch, seq): of a piece of rows, or that follow those in the cache."""
        if piece is not None:
            return cls(piece.ranges)
        if cache is not None and not cache.even:
            return cls((), cache.positions.clamp(max=cache.cache.context_length - 1))  # padding, too
        start = 0 if cache is None else cache.starts[0]
        return cls(((start, start + tokens.shape[1]),))

    def rope(self, tables: RopeTables) -> RopeTables:
        """The rows of these positions. Rotary positions are relative: documents need not begin at 0."""
        cos, sin = tables
        if self.own is not None:
            return cos[self.own], sin[self.own]
        return pick(cos[None], self.ranges)[0], pick(sin[None], self.ranges)[0]

    def ids(self, documents: Tensor | None, device: torch.device) -> Tensor:
        """The positions, (seq,) or (batch, seq) int64; with documents counted from each one's first token.

        documents: (batch, length) of whole rows, of which these are the positions in `ranges`.
        """
        if self.own is not None:
            return self.own
        if documents is None:
            parts = [torch.arange(start, stop, device=device) for start, stop in self.ranges]
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        place = torch.arange(documents.shape[1], device=device)
        counted = place - torch.where(first_tokens(documents), place, 0).cummax(-1).values
        return pick(counted, self.ranges)


def first_tokens(documents: Tensor) -> Tensor:
    """(batch, seq) numbers of documents -> bool: whether a token is the first of its document in the row."""
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return begins


def begins_of(documents: Tensor, piece: RowPiece | None) -> Tensor:
    """`first_tokens` of a batch's documents (batch, seq); those of a piece are judged in the whole row."""
    if piece is None:
        return first_tokens(documents)
    assert piece.documents is not None
    return pick(first_tokens(piece.documents), piece.ranges)


def shift(
    x: Tensor,
    begins: Tensor | None = None,
    before: Tensor | None = None,
    piece: RowPiece | None = None,
    context: ContextParallel = WHOLE_ROWS,
) -> Tensor:
    """At each position what x (batch, seq, ...) has at the one before; zeros where a document begins.

    begins: of `begins_of`, None where rows are not divided. before: (batch, 1, ...), what precedes x; None
    where nothing does. piece: which part of the rows x is; then this is collective over the context ranks,
    one of which has the position before.
    """
    if piece is None:
        before = torch.zeros_like(x[:, :1]) if before is None else before
        shifted = torch.cat((before, x[:, :-1]), 1)
    else:
        parts = x.split([stop - start for start, stop in piece.ranges], 1)
        moved = zip(_before(parts, piece, context), parts, strict=True)
        shifted = torch.cat([each for earlier, part in moved for each in (earlier, part[:, :-1])], 1)
    if begins is None:
        return shifted
    return shifted.masked_fill(begins[(..., *[None] * (x.dim() - 2))], 0)


def _before(parts: Sequence[Tensor], piece: RowPiece, context: ContextParallel) -> list[Tensor]:
    """(batch, 1, ...) for each range of the piece: what the position before it has; zeros before the row."""
    everyone = all_gather(torch.stack([part[:, -1] for part in parts]), 0, context.group)
    ranges = chain.from_iterable(context.pieces(piece.length))
    place = {stop: number for number, (_, stop) in enumerate(ranges)}  # of the range that ends there
    found = [everyone[place.get(start, 0), :, None] for start, _ in piece.ranges]
    if piece.ranges[0][0] == 0:
        # Not other zeros: the ranks add up their gradients together, so each must have used what it got.
        found[0] = found[0].masked_fill(torch.ones((), dtype=torch.bool, device=found[0].device), 0)
    return found
