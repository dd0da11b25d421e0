"""The two ends of the model: tokens to vectors, vectors to the loss. Over a group, cut by tokens."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.batch import LossSum
from llmkit.config.shape import ModelShape
from llmkit.kernels.loss import head_loss, output_logits
from llmkit.model.layers import Layer, column_input, row_output, uninitialized_parameter
from llmkit.parallel.collectives import replicated_weight
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class VocabularyLayer(Layer):
    """A matrix with a row a token, padding behind them; each rank holds `rows` consecutive ones."""

    weight: nn.Parameter

    def __init__(self, shape: ModelShape, tensor: TensorParallel) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size, self.tensor = shape.vocab_size, shape.hidden_size, tensor
        self.rows = -(-shape.padded_vocab_size // tensor.size)
        self.first = tensor.rank * self.rows

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parts`; the box is empty on a rank that holds only padding."""
        low, high = (min(row, self.vocab_size) for row in (self.first, self.first + self.rows))
        shape, box = (self.vocab_size, self.hidden_size), ((low, high), (0, self.hidden_size))
        return {"weight": [ParameterSlice(f"{path}.weight", shape, box, 0, high - low)]}


class Embedding(VocabularyLayer):
    """A vector a token."""

    def __init__(self, shape: ModelShape, tensor: TensorParallel) -> None:
        super().__init__(shape, tensor)
        self.weight = uninitialized_parameter(self.rows, self.hidden_size, sharded_dim=0)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, seq) -> (batch, seq or its piece, hidden)."""
        if self.tensor.size == 1:
            return F.embedding(tokens, self.weight)
        row = tokens - self.first
        elsewhere = (row < 0) | (row >= self.rows)
        found = F.embedding(row.masked_fill(elsewhere, 0), self.weight)
        return row_output(found.masked_fill(elsewhere[..., None], 0.0), self.tensor)


class Head(VocabularyLayer):
    """The output projection with the loss; `tied` is the embedding whose matrix it uses, if any."""

    def __init__(self, shape: ModelShape, tensor: TensorParallel, tied: Embedding | None) -> None:
        super().__init__(shape, tensor)
        self.weight = (
            tied.weight if tied else uninitialized_parameter(self.rows, self.hidden_size, sharded_dim=0)
        )

    def forward(self, hidden: Tensor, labels: Tensor) -> LossSum:
        """hidden: (batch, seq or its piece, hidden), labels: (batch, seq) -> the loss of each row."""
        hidden = column_input(hidden, self.tensor)
        return head_loss(hidden, self.weight, labels, self.vocab_size, self.tensor.group, self.first)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., hidden) -> (..., vocab), fp32; of a model that is not cut."""
        return output_logits(hidden, self.weight, self.vocab_size)[..., : self.vocab_size]


class Positions(Layer):
    """A learned vector a position, held by all ranks."""

    def __init__(self, shape: ModelShape, tensor: TensorParallel) -> None:
        super().__init__()
        self.size = (shape.max_position_embeddings, shape.hidden_size)
        self.weight = uninitialized_parameter(*self.size)
        self.group = tensor.group if tensor.sequence_parallel else None

    def forward(self, positions: Tensor) -> Tensor:
        """positions: (..., seq) -> (..., seq, hidden)."""
        return F.embedding(positions, replicated_weight(self.weight, self.group))

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parts`."""
        return {"weight": [full_slice(f"{path}.weight", self.size)]}
