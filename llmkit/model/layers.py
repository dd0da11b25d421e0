"""Layers without values of their own: `GPT.initialise` fills them, so that nothing is drawn twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """PyTorch's linear layer, left unfilled."""

    def reset_parameters(self) -> None:
        """Does nothing."""


class Embedding(nn.Embedding):
    """PyTorch's embedding, left unfilled."""

    def reset_parameters(self) -> None:
        """Does nothing."""


class StackedLinear(nn.Module):
    """Projections of one input side by side: one matrix product instead of several small ones.

    `projections` maps each projection's name to its output width; in checkpoints they keep these
    names (`q_proj.weight`, ...), so that a layout that cuts them differently can read them.
    """

    def __init__(self, in_features: int, projections: dict[str, int], bias: bool) -> None:
        super().__init__()
        self.projections = projections
        self.widths = tuple(projections.values())
        self.weight = nn.Parameter(torch.empty(sum(self.widths), in_features))
        self.bias = nn.Parameter(torch.empty(sum(self.widths))) if bias else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (..., in_features) -> one (..., width) tensor for each projection."""
        return F.linear(x, self.weight, self.bias).split(self.widths, dim=-1)
