"""The attention facade: callers say what to compute, never with which kernel.

Two forms, both plain PyTorch and both exact:

* `sdpa`: PyTorch's fused attention; no (seq x seq) tensor is kept where no mask is needed.
* `matmul`: masked matrix products. torch.compile fuses mask, softmax and casts into one pass, which
  on a CPU beats the fused kernel for short rows (6 heads of 64, 256 positions: about 2.7 times).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention_mask(
    queries: int, keys: int, window: int | None, documents: Tensor | None, device: torch.device
) -> Tensor:
    """True where a query may look: (queries, keys), or (batch, 1, queries, keys) with documents.

    The queries are the last of the keys. A window of w shows a position itself and w - 1 before it.
    documents: (batch, keys), as in `llmkit.batch.Batch`.
    """
    query = torch.arange(keys - queries, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)[None, :]
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    if documents is not None:
        same = documents[:, keys - queries :, None] == documents[:, None, :]
        visible = (visible & same)[:, None]
    return visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int | None = None,
    documents: Tensor | None = None,
    dropout: float = 0.0,
    attention_impl: str = "sdpa",
) -> Tensor:
    """Causal softmax(q k' / sqrt(head_dim)) v; each key and value head serves a group of query heads.

    q: (batch, queries, heads, head_dim); k, v: (batch, keys, kv_heads, head_dim), the queries being
    the last of the keys. documents: (batch, keys) or None. Returns the shape of q.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    queries, keys = q.shape[2], k.shape[2]
    if window is not None and window >= keys:
        window = None
    if attention_impl == "matmul":
        out = _matmul(q, k, v, attention_mask(queries, keys, window, documents, q.device), dropout)
    else:
        plain = window is None and documents is None
        mask = None
        if not plain or 1 < queries < keys:
            mask = attention_mask(queries, keys, window, documents, q.device)
        causal = plain and queries == keys
        grouped = k.shape[1] != q.shape[1]
        if grouped and q.is_cuda and (mask is not None or q.dtype == torch.float32):
            # Only flash attention takes groups, but neither masks nor fp32: with a key a head the
            # memory-efficient kernel takes these, where the fallback would hold all scores.
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
            grouped = False
        out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=grouped)
    return out.transpose(1, 2)


def _matmul(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """q: (batch, heads, queries, d); k, v: (batch, kv_heads, keys, d); softmax in fp32.

    The queries of one group are stacked, so that keys and values are never copied for each head.
    """
    batch, heads, queries, width = q.shape
    kv_heads = k.shape[1]
    stacked = q.reshape(batch, kv_heads, heads // kv_heads * queries, width)
    scores = (stacked @ k.transpose(-2, -1)).view(batch, kv_heads, -1, queries, k.shape[2]).float()
    if mask.dim() == 4:
        mask = mask[:, :, None]
    scores = (scores / math.sqrt(width)).masked_fill(~mask, float("-inf"))
    weights = F.dropout(scores.softmax(-1), dropout, training=dropout > 0.0).to(v.dtype)
    return (weights.flatten(2, 3) @ v).view(batch, heads, queries, width)
