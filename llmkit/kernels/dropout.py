"""Dropout, and dropout of a branch that is added to the residual stream."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.parallel.randomness import keyed_bits

Key: TypeAlias = Tensor | None
"""One int64, the same on all ranks that hold the same activations; None where PyTorch's generators serve."""


def dropout(x: Tensor, probability: float, key: Key = None) -> Tensor:
    """PyTorch's dropout; with a key, what is dropped depends on the key alone. At probability 0 it is x."""
    if probability == 0.0:
        return x
    if key is None:
        return F.dropout(x, probability)
    index = torch.arange(x.numel(), device=x.device).view_as(x)
    dropped = keyed_bits(index, key) < round(probability * 2**24)
    return (x / (1.0 - probability)).masked_fill(dropped, 0.0)


def dropout_add(branch: Tensor, x: Tensor, probability: float, key: Key = None) -> Tensor:
    """x + dropout(branch)."""
    return x + dropout(branch, probability, key)
