"""One block of the GPT: attention and MLP, each behind a norm, added to the residual stream."""

from __future__ import annotations

from torch import Tensor, nn

from llmkit.config.shape import ModelShape
from llmkit.kernels.dropout import Key
from llmkit.kernels.operators import Operators
from llmkit.model.activation_checkpointing import recomputed
from llmkit.model.attention import Attention
from llmkit.model.layers import Layer, uninitialized_parameter
from llmkit.model.mlp import make_mlp
from llmkit.model.norm import residual_norm
from llmkit.model.positions import AttentionInputs
from llmkit.parallel.collectives import Group, replicated_weight
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class ResidualScalars(Layer):
    """stream * x + embedding * x0: two learned numbers before a block (Jordan et al. 2024, modded-nanogpt).

    group: as of `RMSNorm`.
    """

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.stream, self.embedding = uninitialized_parameter(1), uninitialized_parameter(1)
        self.group = group

    def forward(self, x: Tensor, x0: Tensor) -> Tensor:
        """x, x0: (..., hidden), x0 being what entered the first block -> the same shape."""
        stream, embedding = (replicated_weight(each, self.group) for each in (self.stream, self.embedding))
        return stream * x + embedding * x0

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {kind: [full_slice(f"{path}.{kind}", (1,))] for kind in ("stream", "embedding")}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); each branch times `residual_multiplier`.

    activation_checkpointing: what is computed again in the backward pass ("none", "selective" or "full").
    """

    def __init__(
        self,
        shape: ModelShape,
        layer: int,
        operators: Operators,
        tp: TensorParallel,
        activation_checkpointing: str,
    ) -> None:
        super().__init__()
        mlp = (shape.mlp, shape.hidden_size, shape.intermediate_size, shape.mlp_bias, tp, operators)
        self.residual_scalars = ResidualScalars(tp.sequence_group) if shape.residual_scalars else None
        self.attention_norm = residual_norm(shape, tp, operators)
        self.attention = Attention(shape, layer, tp, operators)
        self.mlp_norm = residual_norm(shape, tp, operators)
        self.mlp = make_mlp(*mlp)
        self.operators, self.residual_multiplier = operators, shape.residual_multiplier
        self.dropout, self.activation_checkpointing = shape.hidden_dropout, activation_checkpointing
        self.random = shape.hidden_dropout > 0.0 or shape.attention_dropout > 0.0

    def forward(
        self,
        x: Tensor,
        inputs: AttentionInputs,
        attention_key: Key = None,
        mlp_key: Key = None,
        x0: Tensor | None = None,
    ) -> Tensor:
        """x: (batch, seq, hidden), or its piece (seq / tp, batch, hidden) -> the same shape.

        attention_key, mlp_key: of the dropouts behind the two halves, see `llmkit.model.dropout`. x0: what
        entered the first block, for residual scalars.
        """
        random = self.random and self.training
        return recomputed(
            self.activation_checkpointing, self._forward, x, inputs, attention_key, mlp_key, x0, random=random
        )

    def _forward(
        self, x: Tensor, inputs: AttentionInputs, attention_key: Key, mlp_key: Key, x0: Tensor | None
    ) -> Tensor:
        if self.residual_scalars is not None:
            x = self.residual_scalars(x, x0)
        mixed = self._scaled(self.attention(self.attention_norm(x), inputs))
        if self.dropout == 0.0 or not self.training:
            x, normed = self.mlp_norm(x, mixed)
            return x + self._scaled(self.mlp(normed))
        x = self.operators.dropout_add(mixed, x, self.dropout, attention_key)
        branch = self._scaled(self.mlp(self.mlp_norm(x)))
        x = self.operators.dropout_add(branch, x, self.dropout, mlp_key)
        return x

    def _scaled(self, branch: Tensor) -> Tensor:
        return branch if self.residual_multiplier == 1.0 else branch * self.residual_multiplier
