"""Causal attention in blocks of queries, each with the keys that it can see: half of all pairs.

What blocks skip is known from the sizes alone, so torch.compile sees a fixed program of matrix products with
mask, softmax and casts fused between them. Documents are compared within a block: a mask costs a comparison
a score, no memory and no other shape.

* `blocks` keeps inputs, output and one number a row, and computes the scores again in the backward pass.
* `matmul` leaves the backward pass to PyTorch, which keeps the attention weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST_BLOCK = 64
BLOCKS = 8
"""Blocks of long rows: 8 of them compute 9/16 of all pairs, 16 would 17/32 in twice the calls."""


class Rule(NamedTuple):
    """How scores follow from products of queries and keys; see `llmkit.kernels.attention.sdpa`."""

    window: int | None
    scale: float
    softcap: float | None


class Tile(NamedTuple):
    """Queries of a block, and the keys that one of them may see."""

    queries: slice
    keys: slice


def tiles(queries: int, keys: int, window: int | None) -> Iterator[Tile]:
    """The blocks of rows of these lengths; the queries are the last positions of the keys."""
    size = max(SMALLEST_BLOCK, -(-queries // (BLOCKS * SMALLEST_BLOCK)) * SMALLEST_BLOCK)
    for first in range(0, queries, size):
        last = min(first + size, queries)
        position = keys - queries + first
        low = 0 if window is None else max(0, position - window + 1)
        yield Tile(slice(first, last), slice(low, keys - queries + last))


def tile_mask(
    tile: Tile, queries: int, keys: int, window: int | None, documents: Tensor | None, device: torch.device
) -> Tensor:
    """True where a query attends to a key: (queries, keys) of the tile, or (batch, 1, queries, keys).

    With a window of w, a position attends to itself and to the w - 1 positions before it. documents:
    (batch, keys), as in `llmkit.batch.Batch`.
    """
    first = keys - queries
    rows = slice(first + tile.queries.start, first + tile.queries.stop)
    query = torch.arange(rows.start, rows.stop, device=device)[:, None]  # (queries, 1)
    key = torch.arange(tile.keys.start, tile.keys.stop, device=device)[None, :]  # (1, keys)
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    if documents is not None:
        same = documents[:, rows, None] == documents[:, None, tile.keys]  # (batch, queries, keys)
        visible = (visible & same)[:, None]
    return visible


def matmul(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    documents: Tensor | None = None,
    bounds: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """As `llmkit.kernels.attention.sdpa`."""
    rule = _rule(q, k, window, softcap, scale)
    keys, values = _stacked(k), _stacked(v)
    parts = []
    for tile in tiles(q.shape[1], k.shape[1], rule.window):
        query = _queries(q, tile, k.shape[2])
        scores, _ = _scores(query, keys, q, k, tile, rule, documents)
        weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0.0).to(v.dtype)
        parts.append(_heads_last(torch.bmm(weights.view(*query.shape[:2], -1), values[:, tile.keys]), q))
    return torch.cat(parts, 1)


def blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    documents: Tensor | None = None,
    bounds: Tensor | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """As `llmkit.kernels.attention.sdpa`; with dropout it is `matmul`."""
    if dropout > 0.0:
        return matmul(
            q, k, v, window=window, documents=documents, dropout=dropout, softcap=softcap, scale=scale
        )
    rule = _rule(q, k, window, softcap, scale)
    out: Tensor = _Blocks.apply(q, k, v, documents, *rule)  # type: ignore[no-untyped-call]
    return out


class _Blocks(torch.autograd.Function):
    """Attention that keeps log(sum(exp(scores))) of each row instead of the weights (Dao et al. 2022)."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor | None,
        window: int | None,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        """Tile by tile: scores, the logarithms of their sums (`normalizers`), weights times values."""
        rule = Rule(window, scale, softcap)
        keys, values = _stacked(k), _stacked(v)
        parts, normalizers = [], []
        for tile in tiles(q.shape[1], k.shape[1], window):
            query = _queries(q, tile, k.shape[2])
            scores, _ = _scores(query, keys, q, k, tile, rule, documents)
            normalizer = scores.logsumexp(-1, keepdim=True)
            weights = (scores - normalizer).exp().to(v.dtype).view(*query.shape[:2], -1)
            parts.append(_heads_last(torch.bmm(weights, values[:, tile.keys]), q))
            normalizers.append(normalizer)
        out = torch.cat(parts, 1)
        ctx.save_for_backward(q, k, v, documents, out, torch.cat(normalizers, 2))
        ctx.rule = rule
        return out

    @staticmethod
    @once_differentiable  # second derivatives would be wrong, not missing
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Tile by tile the scores once more; with weights w, d score = w (gradient value' - mean).

        mean: of each query, its output times the gradient of that, summed.
        """
        q, k, v, documents, out, normalizers = ctx.saved_tensors
        rule = ctx.rule
        keys, values = _stacked(k), _stacked(v)
        key_gradient = value_gradient = _wide(keys.new_zeros(()))
        mean = (_wide(gradient) * _wide(out)).sum(-1).transpose(1, 2)[..., None]  # as normalizers
        parts = []
        for tile in tiles(q.shape[1], k.shape[1], rule.window):
            query, above = _queries(q, tile, k.shape[2]), _queries(gradient, tile, k.shape[2])
            scores, slope = _scores(query, keys, q, k, tile, rule, documents)
            weights = (scores - normalizers[:, :, tile.queries]).exp()
            inner = torch.bmm(above, values[:, tile.keys].transpose(1, 2)).view_as(scores)
            change = weights * (_wide(inner) - mean[:, :, tile.queries]) * slope
            change, weights = (x.to(q.dtype).view(*query.shape[:2], -1) for x in (change, weights))
            parts.append(_heads_last(torch.bmm(change, keys[:, tile.keys]), q))
            around = (0, 0, tile.keys.start, k.shape[1] - tile.keys.stop)
            key_gradient = key_gradient + _wide(F.pad(torch.bmm(change.transpose(1, 2), query), around))
            value_gradient = value_gradient + _wide(F.pad(torch.bmm(weights.transpose(1, 2), above), around))
        both = (
            x.to(k.dtype).unflatten(0, (k.shape[0], -1)).transpose(1, 2)
            for x in (key_gradient, value_gradient)
        )
        return torch.cat(parts, 1), *both, None, None, None, None


def _rule(q: Tensor, k: Tensor, window: int | None, softcap: float | None, scale: float | None) -> Rule:
    if window is not None and window >= k.shape[1]:
        window = None
    return Rule(window, 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale, softcap)


def _wide(x: Tensor) -> Tensor:
    """In fp32, or in fp64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def _stacked(x: Tensor) -> Tensor:
    """Keys or values (batch, keys, kv_heads, head_dim) -> (batch * kv_heads, keys, head_dim)."""
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _queries(x: Tensor, tile: Tile, kv_heads: int) -> Tensor:
    """(batch, queries, heads, head_dim) -> those of a tile, (batch * kv_heads, group * queries, head_dim).

    The queries of a group are stacked, so that its keys and values need no copies.
    """
    return x[:, tile.queries].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1, 2)


def _heads_last(x: Tensor, q: Tensor) -> Tensor:
    """What `_queries` has made, back to (batch, queries of the tile, heads, head_dim)."""
    batch, _, heads, width = q.shape
    return x.view(batch, heads, -1, width).transpose(1, 2)


def _scores(
    query: Tensor, keys: Tensor, q: Tensor, k: Tensor, tile: Tile, rule: Rule, documents: Tensor | None
) -> tuple[Tensor, float | Tensor]:
    """Masked scores of a tile (batch, heads, queries, keys), and d score / d product."""
    products = _wide(torch.bmm(query, keys[:, tile.keys].transpose(1, 2)))
    products = products.view(q.shape[0], q.shape[2], -1, products.shape[-1])
    scores = products * rule.scale
    slope: float | Tensor = rule.scale
    if rule.softcap is not None:
        bent = (scores / rule.softcap).tanh()
        scores, slope = bent * rule.softcap, (1.0 - bent.square()) * rule.scale
    visible = tile_mask(tile, q.shape[1], k.shape[1], rule.window, documents, q.device)
    return scores.masked_fill(~visible, float("-inf")), slope
