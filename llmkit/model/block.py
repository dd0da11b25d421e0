"""One block of the GPT: attention and MLP, each behind a norm, added to the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from llmkit.config.shape import ModelShape
from llmkit.kernels.dropout import Key
from llmkit.kernels.operators import Operators
from llmkit.model.activation_checkpointing import recomputed
from llmkit.model.attention import Attention
from llmkit.model.layers import Layer, uninitialized_parameter
from llmkit.model.mlp import make_mlp
from llmkit.model.moe import MixtureOfExperts
from llmkit.model.norm import residual_norm
from llmkit.model.positions import BlockInputs
from llmkit.model.tiles import in_tiles
from llmkit.parallel.collectives import Group, replicated_weight
from llmkit.parallel.context import WHOLE_ROWS, ContextParallel
from llmkit.parallel.mesh import ALL_EXPERTS, ExpertParallel, TensorParallel
from llmkit.parallel.slices import ParameterSlice, full_slice


class ResidualScalars(Layer):
    """stream * x + embedding * x0 + bigram * vectors of bigrams (Jordan et al. 2024, modded-nanogpt).

    names: which of the three learned numbers there are; without "stream" x stays as it is. group: see
    `RMSNorm`.
    """

    def __init__(self, names: Sequence[str], group: Group) -> None:
        super().__init__()
        self.names, self.group = names, group
        for name in names:
            self.register_parameter(name, uninitialized_parameter(1))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x: (batch, seq, hidden), or its piece -> the same shape."""
        terms: dict[str, Any] = {"stream": x, "embedding": inputs.embedding, "bigram": inputs.bigram}
        mixed: Any = x if "stream" not in self.names else None
        for name in self.names:
            term = replicated_weight(getattr(self, name), self.group) * terms[name]
            mixed = term if mixed is None else mixed + term
        return mixed

    def parameter_slices(self, path: str) -> dict[str, list[ParameterSlice]]:
        """See `Layer.parameter_slices`."""
        return {name: [full_slice(f"{path}.{name}", (1,))] for name in self.names}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); each branch times `residual_multiplier`.

    In some layers the MLP may be a mixture of experts (`ModelShape.has_experts`).

    Norms may also be on what attention and MLP give, or only there (`ModelShape.norm_placement`).
    activation_checkpointing: what is computed again in the backward pass ("none", "selective" or "full").
    experts: the ranks over which experts are dealt out.
    mlp_tile: positions of a sequence for which the MLP, but for experts, is computed at a time; 0 = all.
    """

    def __init__(
        self,
        shape: ModelShape,
        layer: int,
        operators: Operators,
        tp: TensorParallel,
        activation_checkpointing: str,
        context: ContextParallel = WHOLE_ROWS,
        experts: ExpertParallel = ALL_EXPERTS,
        mlp_tile: int = 0,
    ) -> None:
        super().__init__()
        names = shape.residual_scalar_names
        mlp = (shape.mlp, shape.hidden_size, shape.intermediate_size, shape.mlp_bias, tp, operators)
        self.residual_scalars = ResidualScalars(names, tp.sequence_group) if names else None
        before, behind = shape.norm_placement != "post", shape.norm_placement != "pre"
        norm = (shape, tp, operators)
        self.attention_norm = residual_norm(*norm) if before else None
        self.attention = Attention(shape, layer, tp, operators, context)
        self.attention_post_norm = residual_norm(*norm) if behind else None
        self.mlp_norm = residual_norm(*norm) if before else None
        self.has_experts = shape.has_experts(layer)
        mixture = (shape, tp, operators, context, experts)
        self.mlp = MixtureOfExperts(*mixture) if self.has_experts else make_mlp(*mlp)
        self.mlp_post_norm = residual_norm(*norm) if behind else None
        self.operators, self.residual_multiplier = operators, shape.residual_multiplier
        self.dropout, self.activation_checkpointing = shape.hidden_dropout, activation_checkpointing
        # Of pieces of sequences a tile takes an equal part from each rank.
        self.mlp_tile, self.mlp_dim = mlp_tile, 0 if tp.sequence_parallel else 1
        if tp.sequence_parallel and mlp_tile:
            self.mlp_tile = max(1, mlp_tile // tp.size)
        self.random = shape.hidden_dropout > 0.0 or shape.attention_dropout > 0.0

    def forward(
        self, x: Tensor, inputs: BlockInputs, attention_key: Key = None, mlp_key: Key = None
    ) -> Any:
        """x: (batch, seq, hidden), or its piece (seq / tp, batch, hidden) -> the same shape; where the block
        has experts, that and the report of their router, (batch, 5 + experts).

        attention_key, mlp_key: of the dropouts behind the two halves, see `llmkit.model.dropout`.
        """
        random = self.random and self.training
        return recomputed(
            self.activation_checkpointing, self._forward, x, inputs, attention_key, mlp_key, random=random
        )

    def _forward(self, x: Tensor, inputs: BlockInputs, attention_key: Key, mlp_key: Key) -> Any:
        if self.residual_scalars is not None:
            x = self.residual_scalars(x, inputs)
        normed = x if self.attention_norm is None else self.attention_norm(x)
        mixed = self._branch(self.attention(normed, inputs), self.attention_post_norm)
        dropped = self.dropout > 0.0 and self.training
        if dropped or self.mlp_norm is None:
            x = self._added(mixed, x, attention_key)
            normed = x if self.mlp_norm is None else self.mlp_norm(x)
        else:
            x, normed = self.mlp_norm(x, mixed)
        if not self.has_experts:
            random = self.random and self.training  # adapters may have a dropout
            mixed = in_tiles(self.mlp, normed, self.mlp_tile, self.mlp_dim, random=random)
            return self._added(self._branch(mixed, self.mlp_post_norm), x, mlp_key)
        mixed, report = self.mlp(normed, inputs.piece, inputs.limited)
        return self._added(self._branch(mixed, self.mlp_post_norm), x, mlp_key), report

    def _added(self, branch: Tensor, x: Tensor, key: Key) -> Tensor:
        """x + branch, with dropout on the branch in training."""
        if self.dropout == 0.0 or not self.training:
            return x + branch
        added: Tensor = self.operators.dropout_add(branch, x, self.dropout, key)
        return added

    def _branch(self, branch: Tensor, norm: nn.Module | None) -> Tensor:
        """What attention or MLP add to the residual stream."""
        branch = branch if norm is None else norm(branch)
        return branch if self.residual_multiplier == 1.0 else branch * self.residual_multiplier
