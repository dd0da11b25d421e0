"""Value embeddings: a vector of each token that is added to the values of an attention layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.config.shape import ModelShape
from llmkit.model.layers import Layer, column_input, uninitialized_parameter
from llmkit.parallel.collectives import replicated_weight
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class ValueEmbedding(Layer):
    """gate * table[token] for each key and value head, gate = 2 sigmoid(W x[:channels]).

    A form of value residuals (Zhou et al. 2024) that reads the tokens again (Jordan et al. 2024,
    modded-nanogpt), with the gate of nanochat. Tensor parallelism shards the table by columns, as the
    outputs of v_proj are; the gate, a few numbers a head, is held by all ranks.
    """

    def __init__(self, shape: ModelShape, tp: TensorParallel) -> None:
        super().__init__()
        self.tp, heads = tp, shape.num_key_value_heads
        self.size = (shape.vocab_size, heads * shape.head_dim)
        width = self.size[1] // tp.size
        self.columns = (tp.rank * width, (tp.rank + 1) * width)
        first = tp.rank * heads // tp.size  # with fewer heads than ranks, each rank has a part of one
        self.heads = (first, first + max(1, heads // tp.size))
        self.weight = uninitialized_parameter(shape.vocab_size, width, sharded_dim=1)
        self.gate_size = (heads, shape.value_gate_channels)
        self.gate = uninitialized_parameter(*self.gate_size)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens: (batch, seq); x: (batch, seq, hidden), or its piece -> (batch, seq, width / tp)."""
        weight = replicated_weight(self.gate, self.tp.sequence_group)
        gate = 2.0 * torch.sigmoid(F.linear(x[..., : self.gate_size[1]], weight))
        gate = column_input(gate, self.tp)[..., slice(*self.heads)]  # (batch, seq, own heads)
        values = F.embedding(tokens, self.weight).unflatten(-1, (gate.shape[-1], -1))
        return (values * gate[..., None]).flatten(-2)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        rows = self.size[0]
        table = ParameterSlice(f"{path}.weight", self.size, ((0, rows), self.columns), 0, rows)
        gate = full_slice(f"{path}.gate", self.gate_size)
        return {"weight": [table], "gate": [gate]}
