"""The AdamW optimizer (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class RoundsWeights(torch.optim.AdamW):
    """AdamW in a form that sets weights of lower precision in the pass in which it updates their masters.

    rounded: master -> the bf16 tensor of the same elements, of all parameters or of none.
    """

    rounded: Mapping[Tensor, Tensor] = {}


def adamw(
    groups: Sequence[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """An optimizer over groups ("params": fp32 tensors, "weight_decay"), with torch.optim.AdamW's state.

    It updates in one pass over memory and honours two device scalars, () fp32, that may be set on it:
    gradients are divided by `grad_scale`, and where `found_inf` is 1.0 a step changes nothing.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
