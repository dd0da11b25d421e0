"""Attention of a block of queries to a block of keys, and how results of several blocks are put together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.kernels import attention_ring_fused

SCORES = 2**24
"""Scores, over all heads, that are in memory at a time: a block with more is computed in parts."""


class Rule(NamedTuple):
    """How scores follow from products; see `llmkit.kernels.attention.sdpa`."""

    window: int | None
    scale: float
    softcap: float | None


class Block(NamedTuple):
    """Queries and keys, each next to each other in their row.

    query, key: which they are of the tensors that a rank has. query_start, key_start: the position of the
    first of them in the row.
    """

    query: slice
    key: slice
    query_start: int
    key_start: int


class Gradients(NamedTuple):
    """What a block adds to the gradients of queries, keys and values, (batch, tokens, heads, head_dim)."""

    query: Tensor
    key: Tensor
    value: Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of scores, statistics and sums: fp32, or fp64 as it is."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products of a batch in `accumulator`'s type: in bf16 a score of 10 could be 0.03 off."""
    wide = accumulator(a.dtype)
    if a.is_cuda and torch.version.hip is None and a.dtype != wide:
        return torch.bmm(a, b, out_dtype=wide)
    return torch.bmm(a.to(wide), b.to(wide))


def merged(out: Tensor, sums: Tensor, more: Tensor, more_sums: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to two sets of keys from that to each of them.

    out, more: (batch, heads, queries, head_dim). sums: log(sum(exp(score))), (batch, heads, queries); -inf
    where a query sees no key of a set, but never of both sets.
    """
    total = torch.logaddexp(sums, more_sums)
    return out * (sums - total).exp()[..., None] + more * (more_sums - total).exp()[..., None], total


def result_of_block(
    q: Tensor, k: Tensor, v: Tensor, block: Block, rule: Rule, documents: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Attention of the block's queries to its keys alone, and the sums, as `merged` takes both.

    q: (batch, tokens, heads, head_dim), k, v: with kv_heads. documents: (batch, length) of whole rows.
    """
    if (causal := _fused(q, block, rule, documents)) is not None:
        of_block = q[:, block.query], k[:, block.key], v[:, block.key]
        return attention_ring_fused.forward(*of_block, causal, rule.scale)
    keys, values = _stacked(k, block), _stacked(v, block)
    outs, sums = [], []
    for part in _parts(block, q):
        scores, _ = _scores(_queries(q, part, k.shape[2]), keys, q, part, rule, documents)
        total = scores.logsumexp(-1, keepdim=True)
        safe = total.masked_fill(total == -math.inf, 0.0)  # of a query that sees nothing here
        weights = (scores - safe).exp().to(q.dtype).view(len(keys), -1, keys.shape[1])
        outs.append(product(weights, values).view(*scores.shape[:3], -1))
        sums.append(total[..., 0])
    return torch.cat(outs, 2), torch.cat(sums, 2)


def backward_of_block(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    mean: Tensor,
    block: Block,
    rule: Rule,
    documents: Tensor | None,
) -> Gradients:
    """What the block adds to the gradients. With weights w, d score = w (gradient value' - mean).

    gradient: of the output `out` of all keys of the row, both shaped as q. sums: over these keys, (batch,
    heads, tokens). mean: of each query its output times the gradient of that, likewise.
    """
    if (causal := _fused(q, block, rule, documents)) is not None:
        at = block.query
        found = attention_ring_fused.backward(
            gradient[:, at], q[:, at], k[:, block.key], v[:, block.key], out[:, at], sums[:, :, at], causal,
            rule.scale,
        )  # fmt: skip
        return Gradients(*found)
    keys, values = _stacked(k, block), _stacked(v, block)
    of_keys = of_values = torch.zeros((), dtype=sums.dtype, device=q.device)
    of_queries = []
    for part in _parts(block, q):
        query, above = _queries(q, part, k.shape[2]), _queries(gradient, part, k.shape[2])
        scores, slope = _scores(query, keys, q, part, rule, documents)
        weights = (scores - sums[:, :, part.query, None]).exp()
        inner = product(above, values.transpose(1, 2)).view_as(scores)
        change = weights * (inner - mean[:, :, part.query, None]) * slope
        change, weights = (x.to(q.dtype).view(len(keys), -1, keys.shape[1]) for x in (change, weights))
        of_queries.append(product(change, keys).view(*scores.shape[:3], -1).transpose(1, 2))
        of_keys = of_keys + product(change.transpose(1, 2), query)
        of_values = of_values + product(weights.transpose(1, 2), above)
    both = (x.unflatten(0, (k.shape[0], -1)).transpose(1, 2) for x in (of_keys, of_values))
    return Gradients(torch.cat(of_queries, 1), *both)


def _fused(q: Tensor, block: Block, rule: Rule, documents: Tensor | None) -> bool | None:
    """Whether each query sees the keys up to itself, rather than all; None where neither is so, or no fused
    kernel computes it."""
    if documents is not None or rule.softcap is not None or not attention_ring_fused.has_kernel(q):
        return None
    queries, keys = (each.stop - each.start for each in (block.query, block.key))
    if rule.window is not None and block.key_start <= block.query_start + queries - 1 - rule.window:
        return None
    if block.key_start + keys <= block.query_start + 1:
        return False
    return True if (block.query_start, queries) == (block.key_start, keys) else None


def _parts(block: Block, q: Tensor) -> Iterator[Block]:
    """The block as several with fewer queries, so that no more than `SCORES` are made at once."""
    each = max(1, SCORES // (q.shape[0] * q.shape[2] * (block.key.stop - block.key.start)))
    for first in range(block.query.start, block.query.stop, each):
        start = block.query_start + first - block.query.start
        yield block._replace(query=slice(first, min(first + each, block.query.stop)), query_start=start)


def _stacked(x: Tensor, block: Block) -> Tensor:
    """Of keys or values (batch, tokens, kv_heads, width) the block's: (batch * kv_heads, keys, width)."""
    return x[:, block.key].transpose(1, 2).flatten(0, 1)


def _queries(x: Tensor, block: Block, kv_heads: int) -> Tensor:
    """(batch, tokens, heads, head_dim) -> the block's, (batch * kv_heads, group * queries, head_dim)."""
    return x[:, block.query].unflatten(2, (kv_heads, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1).flatten(1, 2)


def _scores(
    query: Tensor, keys: Tensor, q: Tensor, block: Block, rule: Rule, documents: Tensor | None
) -> tuple[Tensor, float | Tensor]:
    """Masked scores of a block (batch, heads, queries, keys), and d score / d product."""
    products = product(query, keys.transpose(1, 2))
    scores = products.view(q.shape[0], q.shape[2], -1, keys.shape[1]) * rule.scale
    slope: float | Tensor = rule.scale
    if rule.softcap is not None:
        bent = (scores / rule.softcap).tanh()
        scores, slope = bent * rule.softcap, (1.0 - bent.square()) * rule.scale
    hidden = _hidden(block, rule.window, documents, q.device)
    return scores if hidden is None else scores.masked_fill(hidden, -math.inf), slope


def _hidden(
    block: Block, window: int | None, documents: Tensor | None, device: torch.device
) -> Tensor | None:
    """True where a query does not attend to a key, (queries, keys) or (batch, 1, queries, keys).

    None where each query attends to all keys.
    """
    q_stop = block.query_start + block.query.stop - block.query.start
    k_stop = block.key_start + block.key.stop - block.key.start
    causal = k_stop > block.query_start + 1  # some key lies behind some query
    windowed = window is not None and block.key_start <= q_stop - 1 - window
    if not causal and not windowed and documents is None:
        return None
    query = torch.arange(block.query_start, q_stop, device=device)[:, None]
    key = torch.arange(block.key_start, k_stop, device=device)[None, :]
    hidden = key > query
    if window is not None:
        hidden = hidden | (key <= query - window)
    if documents is not None:
        rows, columns = documents[:, block.query_start : q_stop], documents[:, block.key_start : k_stop]
        hidden = (hidden | (rows[:, :, None] != columns[:, None, :]))[:, None]
    return hidden
