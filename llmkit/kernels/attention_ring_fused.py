"""Blocks of a ring by PyTorch's fused attention: of queries that see all keys, or all up to themselves.

It gives the logarithms of sums beside the result, by which blocks are put together, and its backward pass
takes those of the whole row in place of the block's own: with them, and with the output of the whole row,
what it computes is the block's part of the gradients (Liu et al. 2023; Dao et al. 2022, appendix B).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmkit.config.context import ring_is_fused

_aten = torch.ops.aten


def has_kernel(q: Tensor) -> bool:
    """Whether a fused kernel takes queries (batch, tokens, heads, head_dim) of this type and device."""
    nvidia = q.is_cuda and torch.version.hip is None
    capability = torch.cuda.get_device_capability(q.device) if nvidia else None
    sixteen_bits = q.dtype in (torch.bfloat16, torch.float16)
    return ring_is_fused(q.device.type, capability, sixteen_bits, q.shape[-1])


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Attention (batch, heads, queries, head_dim) and the sums (batch, heads, queries).

    q: (batch, queries, heads, head_dim). k, v: (batch, keys, kv_heads, head_dim). causal: query n sees the
    keys up to n; else all.
    """
    operation: Any = _aten._scaled_dot_product_flash_attention
    if q.device.type == "cpu":
        operation = _aten._scaled_dot_product_flash_attention_for_cpu
    heads = q.shape[2]
    out, sums, *_ = operation(_first(q), _of_all(k, heads), _of_all(v, heads), 0.0, causal, scale=scale)
    return out, sums


def backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, each shaped as it is.

    gradient, out: of and as the output for all keys of the row, shaped as q. sums: over them, in fp32.
    """
    heads, kv_heads = q.shape[2], k.shape[2]
    all_keys = _of_all(k, heads), _of_all(v, heads)
    given = (_first(gradient), _first(q), *all_keys, _first(out), sums.contiguous())
    if q.device.type == "cpu":
        operation: Any = _aten._scaled_dot_product_flash_attention_for_cpu_backward
        found = operation(*given, 0.0, causal, scale=scale)
    else:
        none = torch.empty(0, dtype=torch.int64, device=q.device)  # no dropout
        sizes = (None, None, q.shape[1], k.shape[1])  # an empty tensor would say that rows are packed
        operation = _aten._scaled_dot_product_flash_attention_backward
        found = operation(*given, *sizes, 0.0, causal, none, none, scale=scale)
    of_q, *others = (each.transpose(1, 2) for each in found)
    of_k, of_v = (_summed(each, kv_heads) for each in others)
    return of_q, of_k, of_v


def _first(x: Tensor) -> Tensor:
    """(batch, tokens, heads, head_dim) -> (batch, heads, tokens, head_dim)."""
    return x.transpose(1, 2)


def _of_all(x: Tensor, heads: int) -> Tensor:
    """Keys or values of some heads, once for each head of queries: (batch, heads, tokens, head_dim)."""
    each = heads // x.shape[2]
    return _first(x if each == 1 else x.repeat_interleave(each, 2))


def _summed(x: Tensor, kv_heads: int) -> Tensor:
    """Gradients (batch, tokens, heads, head_dim) of such copies as those of what was copied."""
    if x.shape[2] == kv_heads:
        return x
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.unflatten(2, (kv_heads, -1)).sum(3, dtype=wide)
