"""Attention within documents and windows without a mask: the documents of a batch, laid end to end.

On a GPU it is PyTorch's flash attention of variable length, which skips what lies outside of a document or a
window. On a CPU documents are computed one after the other, which cannot be compiled.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from llmkit.kernels.attention import sdpa


def kernel_parameters() -> frozenset[str]:
    """What PyTorch's kernel can be asked for: `window_size` from 2.11 on, `enable_gqa` from 2.12 on.

    It takes groups before that, too. Importing it takes a second.
    """
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


GROUPS: dict[str, Any] = {"enable_gqa": True}
if torch.version.cuda is not None and "enable_gqa" not in kernel_parameters():
    GROUPS = {}


def varlen(
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
    """As `llmkit.kernels.attention.sdpa`, which it calls where there is neither a document nor a window.

    It also does where the bounds of documents are not known, or there are fewer queries than keys; and with
    dropout or a soft cap.
    """
    (batch, keys), unknown = k.shape[:2], documents is not None and bounds is None
    plain = documents is None and (window is None or window >= keys)
    if plain or unknown or q.shape[1] != keys or dropout > 0.0 or softcap is not None:
        return sdpa(
            q, k, v, window=window, documents=documents, dropout=dropout, softcap=softcap, scale=scale
        )
    if bounds is None:
        bounds = torch.arange(0, (batch + 1) * keys, keys, dtype=torch.int32, device=q.device)
    query, key, value = (x.flatten(0, 1) for x in (q, k, v))  # (batch * seq, heads, head_dim)
    if q.device.type == "cpu":
        return _one_by_one(query, key, value, bounds, window, scale).view_as(q)
    from torch.nn.attention.varlen import varlen_attn

    # No document is longer than a row: with its own length, each longest document would be compiled anew.
    out = varlen_attn(
        query, key, value, bounds, bounds, keys, keys, scale=scale,
        window_size=(-1 if window is None else window - 1, 0), **GROUPS,
    )  # fmt: skip
    assert isinstance(out, Tensor)
    return out.view_as(q)


def _one_by_one(
    q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, window: int | None, scale: float | None
) -> Tensor:
    """q, k, v: (tokens, heads, head_dim) of all documents."""
    parts = []
    for first, last in pairwise(bounds.tolist()):
        if first < last:
            own = (x[None, first:last] for x in (q, k, v))
            parts.append(sdpa(*own, window=window, scale=scale)[0])
    return torch.cat(parts)
