"""Causal attention: the contract of all its forms, and PyTorch's fused attention.

Other forms: `llmkit.kernels.attention_blocks`, for CPUs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.kernels.attention_blocks import Tile, blocks, tile_mask, tiles

LONGEST_MASK = 512
"""Keys up to which a mask of all queries is made at once; of longer rows, of a block at a time."""


def sdpa(
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
    """Causal softmax(score) v, score = q k' scale; each key and value head serves a group of query heads.

    q: (batch, queries, heads, head_dim); k, v: (batch, keys, kv_heads, head_dim), the queries being the last
    positions of the keys. window: how many positions one attends to, its own the last of them; None = all
    before it. documents, bounds: as in `llmkit.batch.Batch`, of the keys, or None. dropout: of the attention
    weights. softcap: scores become softcap * tanh(score / softcap) (Gemma 2). scale: default
    1 / sqrt(head_dim). Returns the shape of q.

    A (queries x keys) tensor is made where a mask is needed, of at most `LONGEST_MASK` keys or of a block of
    queries. Soft-capped scores are computed by `blocks`.
    """
    if softcap is not None:
        return blocks(
            q, k, v, window=window, documents=documents, dropout=dropout, softcap=softcap, scale=scale
        )
    queries, keys = q.shape[1], k.shape[1]
    if window is not None and queries == 1:
        k, v, keys = k[:, -window:], v[:, -window:], min(keys, window)
        documents = None if documents is None else documents[:, -window:]
    if window is not None and window >= keys:
        window = None
    plain = window is None and documents is None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (batch, heads, seq, head_dim)
    if plain and (queries == keys or queries == 1):
        return _attend(q, k, v, None, dropout, queries == keys, scale).transpose(1, 2)
    whole = [Tile(slice(0, queries), slice(0, keys))]
    parts = []
    for tile in whole if keys <= LONGEST_MASK else tiles(queries, keys, window):
        mask = tile_mask(tile, queries, keys, window, documents, q.device)
        ours = q[:, :, tile.queries], k[:, :, tile.keys], v[:, :, tile.keys]
        parts.append(_attend(*ours, mask, dropout, False, scale).transpose(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def masked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    *,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """As `sdpa`, but each query attends to the keys where `visible` (batch, queries, keys) bool is true.

    For rows of different lengths in generation, whose queries are few. No gradients.
    """
    queries, groups = q.shape[1], q.shape[2] // k.shape[2]
    # The query heads of a group become further queries: so its keys and values need no copies.
    # q: (batch, kv_heads, queries * groups, head_dim); k, v: (batch, kv_heads, keys, head_dim).
    q = q.unflatten(2, (-1, groups)).transpose(1, 2).flatten(2, 3)
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    visible = visible[:, None].repeat_interleave(groups, 2)  # (batch, 1, queries * groups, keys)
    if softcap is None:
        mixed = F.scaled_dot_product_attention(q, k, v, visible, scale=scale)
    else:
        scores = (q @ k.transpose(-1, -2)).float() * (q.shape[-1] ** -0.5 if scale is None else scale)
        scores = ((scores / softcap).tanh() * softcap).masked_fill(~visible, float("-inf"))
        mixed = scores.softmax(-1).to(v.dtype) @ v
    return mixed.unflatten(2, (queries, groups)).transpose(1, 2).flatten(2, 3)


def decoding(device: torch.device) -> AbstractContextManager[None]:
    """Where tokens are generated one by one: flash attention first on a GPU.

    cuDNN's attention, which PyTorch prefers on Hopper, builds a plan for each new number of keys, which takes
    longer than the token.
    """
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    context: AbstractContextManager[None] = sdpa_kernel(order, set_priority=True)
    return context


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    dropout: float,
    causal: bool,
    scale: float | None,
) -> Tensor:
    """q: (batch, heads, queries, head_dim); k, v: (batch, kv_heads, keys, head_dim)."""
    grouped = k.shape[1] != q.shape[1]
    if grouped and q.is_cuda and (mask is not None or q.dtype == torch.float32):
        # Flash attention and cuDNN take groups, but neither masks nor fp32: with as many key as query heads
        # the memory-efficient kernel takes these, where the fallback would hold all scores.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped)
