"""Causal attention in plain PyTorch, in two forms.

* `sdpa`: PyTorch's fused attention; no (seq x seq) tensor is kept where no mask is needed.
* `matmul`: masked matrix products. torch.compile fuses mask, softmax and casts into one pass, which
  on a CPU beats the fused kernel for short sequences (6 heads of 64, 256 positions: about 2.7 times).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_mask(
    queries: int, keys: int, window: int | None, documents: Tensor | None, device: torch.device
) -> Tensor:
    """True where a query attends to a key: (queries, keys), or (batch, 1, queries, keys) with documents.

    The queries are the last positions of the keys. With a window of w, a position attends to itself and to
    the w - 1 positions before it. documents: (batch, keys), as in `llmkit.batch.Batch`.
    """
    query = torch.arange(keys - queries, keys, device=device)[:, None]  # (queries, 1)
    key = torch.arange(keys, device=device)[None, :]  # (1, keys)
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    if documents is not None:
        same = documents[:, keys - queries :, None] == documents[:, None, :]  # (batch, queries, keys)
        visible = (visible & same)[:, None]
    return visible


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    documents: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Causal softmax(q k' / sqrt(head_dim)) v; each key and value head serves a group of query heads.

    q: (batch, queries, heads, head_dim); k, v: (batch, keys, kv_heads, head_dim), the queries being the last
    positions of the keys. documents: (batch, keys) or None. dropout: of the attention weights.
    Returns the shape of q.
    """
    return _of_heads(_sdpa, q, k, v, window, documents, dropout)


def matmul(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    documents: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `sdpa`, in masked matrix products."""
    return _of_heads(_matmul, q, k, v, window, documents, dropout)


def _of_heads(
    form: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    documents: Tensor | None,
    dropout: float,
) -> Tensor:
    """A form that takes (batch, heads, seq, head_dim), on tensors (batch, seq, heads, head_dim)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if window is not None and window >= k.shape[2]:
        window = None
    return form(q, k, v, window, documents, dropout).transpose(1, 2)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, documents: Tensor | None, dropout: float
) -> Tensor:
    """q: (batch, heads, queries, head_dim); k, v: (batch, kv_heads, keys, head_dim)."""
    queries, keys = q.shape[2], k.shape[2]
    plain = window is None and documents is None
    mask = None
    if not plain or 1 < queries < keys:
        mask = attention_mask(queries, keys, window, documents, q.device)
    causal = plain and queries == keys
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.is_cuda and (mask is not None or q.dtype == torch.float32):
        # Only flash attention takes groups, but neither masks nor fp32: with as many key as query heads
        # the memory-efficient kernel takes these, where the fallback would hold all scores.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped)


def _matmul(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, documents: Tensor | None, dropout: float
) -> Tensor:
    """As `_sdpa`; softmax in fp32. The queries of a group are stacked: keys and values are not repeated."""
    batch, heads, queries, head_dim = q.shape
    kv_heads, keys = k.shape[1:3]
    mask = attention_mask(queries, keys, window, documents, q.device)
    if documents is not None:
        mask = mask[:, :, None]  # (batch, 1, 1, queries, keys)
    stacked = q.reshape(batch, kv_heads, heads // kv_heads * queries, head_dim)
    scores = (stacked @ k.transpose(-2, -1)).view(batch, kv_heads, -1, queries, keys).float()
    scores = (scores / math.sqrt(head_dim)).masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0.0).to(v.dtype)
    return (weights.flatten(2, 3) @ v).view(batch, heads, queries, head_dim)
