"""Gates of attention heads: a number for each position and head, from a few channels of the layer's input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.model.layers import Layer, column_input, uninitialized_parameter
from llmkit.parallel.collectives import replicated_weight
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class HeadGate(Layer):
    """2 sigmoid(W x[:channels]), between 0 and 2 for each head (nanochat).

    All tensor-parallel ranks hold W, a few numbers a head, and compute the gates of all heads; where each
    has a piece of the sequence they gather those of the rest.
    """

    def __init__(self, heads: int, channels: int, tp: TensorParallel) -> None:
        super().__init__()
        self.size, self.tp = (heads, channels), tp
        self.weight = uninitialized_parameter(*self.size)
        first = tp.rank * heads // tp.size  # with fewer heads than ranks, each rank has a part of one
        self.own = (first, first + max(1, heads // tp.size))

    def forward(self, x: Tensor) -> Tensor:
        """x: (batch, seq, hidden), or its piece -> (batch, seq, own heads)."""
        weight = replicated_weight(self.weight, self.tp.sequence_group)
        gate = 2.0 * torch.sigmoid(F.linear(x[..., : self.size[1]], weight))
        return column_input(gate, self.tp)[..., slice(*self.own)]

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {"weight": [full_slice(f"{path}.weight", self.size)]}
