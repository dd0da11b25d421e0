"""Embeddings and the output head with the loss; tensor parallelism shards both by rows of the vocabulary."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.batch import LossSum
from llmkit.config.shape import ModelShape
from llmkit.kernels.head_loss import CROSS_ENTROPY, LossTerms, output_logits
from llmkit.kernels.operators import TORCH, Operators
from llmkit.kernels.target_scores import score_targets
from llmkit.model.layers import (
    Layer,
    row_output,
    sequence_first,
    uninitialized_parameter,
)
from llmkit.parallel.collectives import all_gather, replicated_weight
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class VocabularyLayer(Layer):
    """A matrix of one row per token and of padding behind them; each rank holds `rows` consecutive rows."""

    weight: nn.Parameter

    def __init__(
        self, vocab_size: int, hidden_size: int, tp: TensorParallel, padded_vocab_size: int = 0
    ) -> None:
        super().__init__()
        self.vocab_size, self.hidden_size, self.tp = vocab_size, hidden_size, tp
        self.rows = -(-max(vocab_size, padded_vocab_size) // tp.size)
        self.first = tp.rank * self.rows

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`; the box is empty on a rank that holds only padding."""
        low, high = (min(row, self.vocab_size) for row in (self.first, self.first + self.rows))
        shape, box = (self.vocab_size, self.hidden_size), ((low, high), (0, self.hidden_size))
        return {"weight": [ParameterSlice(f"{path}.weight", shape, box, 0, high - low)]}


class Embedding(VocabularyLayer):
    """A vector for each token. padded_vocab_size: rows of the matrix, if more than tokens."""

    def __init__(
        self, vocab_size: int, hidden_size: int, tp: TensorParallel, padded_vocab_size: int = 0
    ) -> None:
        super().__init__(vocab_size, hidden_size, tp, padded_vocab_size)
        self.weight = uninitialized_parameter(self.rows, self.hidden_size, sharded_dim=0)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (batch, seq) -> (batch, seq, hidden), or its piece of the sequence."""
        if self.tp.size == 1:
            return F.embedding(tokens, self.weight)
        row = sequence_first(tokens, self.tp) - self.first
        on_other_rank = (row < 0) | (row >= self.rows)
        found = F.embedding(row.masked_fill(on_other_rank, 0), self.weight)
        return row_output(found.masked_fill(on_other_rank[..., None], 0.0), self.tp)


class Head(VocabularyLayer):
    """The output projection with the loss; `tied` is the embedding whose matrix it uses, if any.

    logits_scaling: logits are divided by it. compiled: what of it torch.compile has compiled: all of this
    module, parts of the loss, or nothing.

    Where `counts_likeliest` is set, the loss has `LossSum.likeliest`; then gradients are off, nothing is
    compiled, and there may be several rows of labels to a row of tokens, as in `score_targets`.
    """

    compiled: Literal["whole", "parts", ""] = ""

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        tp: TensorParallel,
        padded_vocab_size: int = 0,
        tied: Embedding | None = None,
        operators: Operators = TORCH,
        terms: LossTerms = CROSS_ENTROPY,
        logits_scaling: float = 1.0,
    ) -> None:
        super().__init__(vocab_size, hidden_size, tp, padded_vocab_size)
        self.operators, self.terms, self.logits_scaling = operators, terms, logits_scaling
        self.counts_likeliest = False  # here: code that was compiled without the attribute would be again
        if tied is None:
            self.weight = uninitialized_parameter(self.rows, self.hidden_size, sharded_dim=0)
        else:
            self.weight = tied.weight

    def forward(self, hidden: Tensor, labels: Tensor) -> LossSum:
        """hidden: (batch, seq, hidden) or its piece, labels: (batch, seq) -> the loss of each sequence.

        In evaluation mode without a gradient, unless that is another graph to compile.
        """
        if self.counts_likeliest:
            return score_targets(
                self._scaled(hidden),
                self.weight,
                labels,
                self.vocab_size,
                self.tp.group,
                self.first,
                pieces=self.tp.sequence_parallel,
                softcap=self.terms.softcap,
            )
        # Only between ranks: a form that others register for one process need not know the argument.
        sharded = {"pieces": self.tp.sequence_parallel} if self.tp.size > 1 else {}
        loss: LossSum = self.operators.head_loss(
            self._scaled(hidden),
            self.weight,
            labels,
            self.vocab_size,
            self.tp.group,
            self.first,
            **sharded,
            terms=self.terms,
            gradients=self.compiled == "whole" or (self.training and torch.is_grad_enabled()),
            compiled=self.compiled == "parts",
        )
        return loss

    def _scaled(self, hidden: Tensor) -> Tensor:
        return hidden if self.logits_scaling == 1.0 else hidden / self.logits_scaling

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (..., hidden), not a piece -> (..., vocab), fp32. Collective under tensor parallelism."""
        hidden = self._scaled(hidden)
        ours = output_logits(hidden, self.weight, self.vocab_size - self.first, softcap=self.terms.softcap)
        if self.tp.group is not None:
            ours = all_gather(ours, ours.dim() - 1, self.tp.group)
        return ours[..., : self.vocab_size]


class Positions(Layer):
    """A learned vector for each position, held by all ranks."""

    def __init__(self, shape: ModelShape, tp: TensorParallel) -> None:
        super().__init__()
        self.size, self.tp = (shape.max_position_embeddings, shape.hidden_size), tp
        self.weight = uninitialized_parameter(*self.size)

    def forward(self, positions: Tensor) -> Tensor:
        """positions: (seq,) or (batch, seq) -> (1 or batch, seq, hidden), or its piece of the sequence."""
        positions = sequence_first(positions.view(-1, positions.shape[-1]), self.tp)
        if self.tp.sequence_parallel:
            positions = positions.chunk(self.tp.size)[self.tp.rank]
        return F.embedding(positions, replicated_weight(self.weight, self.tp.sequence_group))

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {"weight": [full_slice(f"{path}.weight", self.size)]}
