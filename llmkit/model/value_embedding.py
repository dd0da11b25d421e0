"""Value embeddings: a vector of each token that is added to the values of an attention layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from llmkit.config.shape import ModelShape
from llmkit.model.gate import HeadGate
from llmkit.model.layers import Layer, uninitialized_parameter
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice


class ValueEmbedding(Layer):
    """gate * table[token] for each key and value head (see `HeadGate`).

    A form of value residuals (Zhou et al. 2024) that reads the tokens again (Jordan et al. 2024,
    modded-nanogpt), with the gate of nanochat. Tensor parallelism shards the table by columns, as the
    outputs of v_proj are.
    """

    def __init__(self, shape: ModelShape, tp: TensorParallel) -> None:
        super().__init__()
        heads = shape.num_key_value_heads
        self.size = (shape.vocab_size, heads * shape.head_dim)
        width = self.size[1] // tp.size
        self.columns = (tp.rank * width, (tp.rank + 1) * width)
        self.weight = uninitialized_parameter(shape.vocab_size, width, sharded_dim=1)
        self.gate = HeadGate(heads, shape.gate_channels, tp)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        """tokens: (batch, seq); x: (batch, seq, hidden), or its piece -> (batch, seq, width / tp)."""
        gate = self.gate(x)
        values = F.embedding(tokens, self.weight).unflatten(-1, (gate.shape[-1], -1))
        return (values * gate[..., None]).flatten(-2)

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        rows = self.size[0]
        return {"weight": [ParameterSlice(f"{path}.weight", self.size, ((0, rows), self.columns), 0, rows)]}
