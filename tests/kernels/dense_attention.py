"""Attention over all pairs at once: what its forms are compared with at sizes of several blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    documents: Tensor | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    """The contract of `llmkit.kernels.attention.sdpa`, without dropout."""
    group, distance = q.shape[2] // k.shape[2], torch.arange(k.shape[1] - q.shape[1], k.shape[1])[:, None]
    distance = distance - torch.arange(k.shape[1])
    k, v = (x.repeat_interleave(group, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (scale or 1 / math.sqrt(q.shape[-1]))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    hidden = ((distance < 0) | (distance >= (window or k.shape[1])))[None, None]
    if documents is not None:
        own = documents[:, -q.shape[1] :]
        hidden = hidden | (own[:, None, :, None] != documents[:, None, None, :])
    weights = scores.masked_fill(hidden.to(q.device), float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def documents_of(lengths: list[list[int]]) -> Tensor:
    """Document numbers (batch, seq) of rows with documents of these lengths."""
    return torch.stack(
        [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in lengths]
    ).int()


def tensors(
    shape: tuple[int, int, int], heads: tuple[int, int], width: int, dtype: torch.dtype, device: str = "cpu"
) -> list[Tensor]:
    """q, k and v for (batch, queries, keys) and (heads, kv_heads), with gradients."""
    generator = torch.Generator().manual_seed(0)
    (batch, queries, keys), (own, shared) = shape, heads
    sizes = (batch, queries, own, width), (batch, keys, shared, width), (batch, keys, shared, width)
    return [torch.randn(s, generator=generator).to(device, dtype).requires_grad_() for s in sizes]
