"""Rotary position embedding of queries and keys (Su et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotates the pairs (x[i], x[i + head_dim/2]) of both by their position's angles.

    q, k: (batch, seq, heads, head_dim), each with its number of heads; cos, sin: (seq, head_dim // 2).
    In fp32 (fp64 if they are), then cast back. A form may overwrite q and k with the result: nobody may read
    them again.
    """
    return _rotated(q, cos, sin), _rotated(k, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
