"""The AdamW optimizer (Loshchilov and Hutter 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def adamw(
    groups: Sequence[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """An optimizer over groups ("params": fp32 tensors, "weight_decay"), with torch.optim.AdamW's state.

    It updates in one pass over memory, and honours `found_inf`: where that device scalar is 1.0, a step
    changes nothing.
    """
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
