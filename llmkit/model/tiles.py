"""A function of each position by itself, computed for some positions at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llmkit.model.activation_checkpointing import recomputed


def in_tiles(
    function: Callable[[Tensor], Tensor], x: Tensor, tile: int, dim: int, *, random: bool = False
) -> Tensor:
    """function(x), of `tile` positions along `dim` at a time; 0 = of all at once.

    The tiles are computed again in the backward pass, each when its gradient comes, so that no more than x
    and what one tile needs is in memory (TiledMLP of Arctic Long Sequence Training, Bekman et al. 2025).
    Gradients of weights are summed over the tiles in their own type. random: whether the function draws
    random numbers.
    """
    if not 0 < tile < x.shape[dim]:
        return function(x)
    return torch.cat([recomputed("full", function, part, random=random) for part in x.split(tile, dim)], dim)
