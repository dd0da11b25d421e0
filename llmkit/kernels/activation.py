"""Activations of the MLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020); both of one shape, which may be strided."""
    return F.silu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up (Shazeer 2020), in the tanh approximation; the arguments as of `swiglu`."""
    return gelu(gate) * up


def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """GELU of x + bias in its tanh approximation, as in GPT-2. x: (..., size), bias: (size,).

    A form whose attribute `adds_bias` is true adds the bias and sums its gradient in the passes that it
    makes anyway; models then leave it out of the matrix product before it.
    """
    x = x if bias is None else x + bias
    if not torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    # 0.5 (1 + tanh(u)) = sigmoid(2 u): compiled for a CPU it takes less than half of the time of tanh.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    twice_u = 1.5957691216057308 * (wide + 0.044715 * wide * wide * wide)  # 2 sqrt(2 / pi) (x + ...)
    return (wide * torch.sigmoid(twice_u)).to(x.dtype)


def relu2(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """relu(x + bias)^2 (So et al. 2021, Primer); the arguments as of `gelu`, and `adds_bias`, too."""
    return F.relu(x if bias is None else x + bias).square()
