"""Rotary position embedding (Su et al. 2021), in the half-split layout of Llama checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(length: int, head_dim: int, theta: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of positions 0..length-1: two tensors (length, head_dim // 2), fp32.

    scale: a factor of both, and so of every query and key that they rotate: scores become scale^2 of theirs.
    """
    # Whole numbers first: under ZeRO-3 DeepSpeed rounds what constructors make in floating point.
    frequency = theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
    angle = torch.outer(torch.arange(length).float(), frequency)
    return angle.cos() * scale, angle.sin() * scale
