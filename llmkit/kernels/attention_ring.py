"""Ring attention (Liu et al. 2023): each rank keeps its queries, while keys and values go around the ranks.

A rank has two ranges of each row ("zigzag", `llmkit.config.context.row_pieces`), so that all have about as
many pairs of a query and a key before it. Parts of a softmax are put together by the logarithms of their
sums, in fp32 (Milakov and Gimelshein 2018; Dao et al. 2022). While a rank computes with one piece of keys
and values, the next one is on its way.

Two operations of PyTorch's, forward and backward: torch.compile sees one node each, and selective
recomputation keeps the result (`llmkit.model.activation_checkpointing`), not what went around.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkit.batch import Ranges, RowPiece
from llmkit.kernels.attention_ring_blocks import (
    Block,
    Rule,
    accumulator,
    backward_of_block,
    merged,
    result_of_block,
)
from llmkit.parallel.collectives import start_all_to_all, wait
from llmkit.parallel.context import ContextParallel

NOTHING = 0.0
"""Of a soft cap, or a window: there is none. Operations of PyTorch's take no None for a number."""


class _Ring(NamedTuple):
    """The ranks, and which positions of the rows each of them has."""

    rank: int
    size: int
    group: str
    pieces: list[Ranges]

    @classmethod
    def of(cls, ranges: list[int], rank: int, size: int, group: str) -> _Ring:
        """ranges: of all pieces, as `_flat` gives them."""
        numbers = iter(ranges)
        flat = list(zip(numbers, numbers, strict=True))
        each = len(flat) // size
        pieces = [tuple(flat[at * each : (at + 1) * each]) for at in range(size)]
        return cls(rank, size, group, pieces)

    def tokens(self, rank: int) -> int:
        """How many positions a rank has."""
        return sum(stop - start for start, stop in self.pieces[rank])

    def start(self, held: Tensor, owner: int) -> Tensor:
        """Starts to send `held` (tokens, ...), which `owner` had at first, to the next rank.

        `wait` gives what the rank before held.
        """
        sent, received = [0] * self.size, [0] * self.size
        sent[(self.rank + 1) % self.size] = self.tokens(owner)
        received[self.rank - 1] = self.tokens((owner - 1) % self.size)
        return start_all_to_all(held, received, sent, self.group)

    def blocks(self, owner: int, window: int | None) -> Iterator[Block]:
        """Blocks of own queries and of keys of `owner` in which a query sees a key.

        Those in which each query sees itself come first: no row of the softmax is empty then.
        """
        found = []
        for q_start, queries in _placed(self.pieces[self.rank]):
            for k_start, keys in _placed(self.pieces[owner]):
                last_query, last_key = q_start + len(queries) - 1, k_start + len(keys) - 1
                too_old = window is not None and last_key <= q_start - window
                if k_start <= last_query and not too_old and len(queries) and len(keys):
                    found.append(Block(slice(*_ends(queries)), slice(*_ends(keys)), q_start, k_start))
        return iter(sorted(found, key=lambda block: block.query != block.key))


def _placed(ranges: Ranges) -> Iterator[tuple[int, range]]:
    """Of each range, where it begins in the row, and where its positions are in the piece."""
    at = 0
    for start, stop in ranges:
        yield start, range(at, at + stop - start)
        at += stop - start


def _ends(places: range) -> tuple[int, int]:
    return places.start, places.stop


def ring(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    context: ContextParallel,
    piece: RowPiece,
    *,
    window: int | None = None,
    bounds: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """See `llmkit.kernels.attention_context.attend_across_ranks`; there is no dropout."""
    assert dropout == 0.0 and context.group is not None, "settings with dropout are refused"
    flat = [number for ranges in context.pieces(piece.length) for pair in ranges for number in pair]
    out, _ = _forward(
        q, k, v, piece.documents, flat, context.rank, context.size, context.group.group_name,
        window or 0, softcap or NOTHING, 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale,
    )  # fmt: skip
    return out


@torch.library.custom_op("llmkit::ring_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    documents: Tensor | None,
    ranges: list[int],
    rank: int,
    size: int,
    group: str,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention, and log(sum(exp(score))) of each query, (batch, heads, queries), in fp32."""
    ring, rule = _Ring.of(ranges, rank, size, group), Rule(window or None, scale, softcap or None)
    batch, queries, heads, width = q.shape
    wide = accumulator(q.dtype)
    out = torch.zeros((batch, heads, queries, width), dtype=wide, device=q.device)
    sums = torch.full((batch, heads, queries), -math.inf, dtype=wide, device=q.device)
    held = torch.stack((k, v)).movedim(2, 0).contiguous()  # (tokens, 2, batch, kv_heads, head_dim)
    for turn in range(size):
        owner = (rank - turn) % size
        coming = ring.start(held, owner) if turn < size - 1 else None
        keys, values = held.movedim(0, 2)  # (batch, tokens, kv_heads, head_dim) each
        for block in ring.blocks(owner, rule.window):
            found, found_sums = result_of_block(q, keys, values, block, rule, documents)
            at = block.query
            out[:, :, at], sums[:, :, at] = merged(out[:, :, at], sums[:, :, at], found, found_sums)
        if coming is not None:
            held = wait(coming)
    return out.to(q.dtype).transpose(1, 2).contiguous(), sums


@_forward.register_fake
def _(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _width = q.shape
    sums = q.new_empty((batch, heads, queries), dtype=accumulator(q.dtype))
    return torch.empty_like(q, memory_format=torch.contiguous_format), sums


@torch.library.custom_op("llmkit::ring_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    documents: Tensor | None,
    ranges: list[int],
    rank: int,
    size: int,
    group: str,
    window: int,
    softcap: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. Those of keys and values go around with them, summed in fp32."""
    ring, rule = _Ring.of(ranges, rank, size, group), Rule(window or None, scale, softcap or None)
    # Of each query, its output times the gradient of that: (batch, heads, queries) fp32.
    wide = accumulator(q.dtype)
    mean = (gradient.to(wide) * out.to(wide)).sum(-1).transpose(1, 2)
    of_q = torch.zeros(q.shape, dtype=wide, device=q.device)
    held = torch.stack((k, v)).movedim(2, 0).contiguous()
    sent: Tensor | None = None
    for turn in range(size):
        owner = (rank - turn) % size
        coming = ring.start(held, owner) if turn < size - 1 else None
        keys, values = held.movedim(0, 2)
        own = torch.zeros(held.shape, dtype=wide, device=q.device)
        of_keys, of_values = own.movedim(0, 2)
        for block in ring.blocks(owner, rule.window):
            part = backward_of_block(
                gradient, q, keys, values, out, sums, mean, block, rule, documents
            )  # fmt: skip
            of_q[:, block.query] += part.query
            of_keys[:, block.key] += part.key
            of_values[:, block.key] += part.value
        if sent is not None:  # what the ranks before have found for the same keys and values
            own += wait(sent)
        sent = ring.start(own, owner)
        if coming is not None:
            held = wait(coming)
    assert sent is not None
    of_k, of_v = wait(sent).movedim(0, 2).to(k.dtype)
    return of_q.to(q.dtype), of_k.contiguous(), of_v.contiguous()


@_backward.register_fake
def _(_gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    empty = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    return tuple(empty)  # type: ignore[return-value]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, documents, *ctx.how = inputs
    out, sums = output
    ctx.mark_non_differentiable(sums)
    ctx.save_for_backward(q, k, v, out, sums, documents)


def _gradients(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, sums, documents = ctx.saved_tensors
    return *_backward(gradient, q, k, v, out, sums, documents, *ctx.how), *[None] * (1 + len(ctx.how))


_forward.register_autograd(_gradients, setup_context=_setup)
