"""Attention by its formula, weights and all."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_attention(
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
) -> tuple[Tensor, Tensor]:
    """The weights of attention, (batch, heads, queries, keys) fp32, and what `kernels.attention.sdpa` gives.

    Arguments as there, but of whole sequences, without dropout and of one document.
    """
    assert documents is None and dropout == 0.0 and q.shape[1] == k.shape[1]
    groups = q.shape[2] // k.shape[2]
    keys, values = (x.repeat_interleave(groups, 2) for x in (k, v))  # (batch, seq, heads, head_dim)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.float(), keys.float())
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    position = torch.arange(q.shape[1], device=q.device)
    back = position[:, None] - position  # how far back a query finds a key
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return weights, torch.einsum("bhqk,bkhd->bqhd", weights, values.float()).to(q.dtype)
