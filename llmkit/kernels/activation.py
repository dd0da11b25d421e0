"""Activations of the MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer 2020); both of one shape, which may be strided."""
    return F.silu(gate) * up


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, as in GPT-2."""
    return F.gelu(x, approximate="tanh")
