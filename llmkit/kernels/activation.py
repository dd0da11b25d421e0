"""Activations of the MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020); both of one shape, which may be strided."""
    return F.silu(gate) * up


def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU of x + bias in its tanh approximation, as in GPT-2. x: (..., size), bias: (size,).

    A form whose attribute `adds_bias` is true adds the bias and sums its gradient in the passes that it
    makes anyway; models then leave it out of the matrix product before it.
    """
    return F.gelu(x if bias is None else x + bias, approximate="tanh")
