"""The linear layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x weight' + bias. x: (..., inputs), weight: (outputs, inputs), bias: (outputs,) -> (..., outputs)."""
    return F.linear(x, weight, bias)
