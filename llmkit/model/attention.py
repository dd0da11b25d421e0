"""Causal self-attention with grouped keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmkit.config.shape import ModelShape
from llmkit.kernels.attention import masked
from llmkit.kernels.attention_context import attend_across_ranks
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.layers import FusedColumnLinear, RowLinear
from llmkit.model.norm import RMSNorm, WidthRMSNorm
from llmkit.model.positions import BlockInputs, RopeTables, shift
from llmkit.model.value_embedding import ValueEmbedding
from llmkit.parallel.collectives import all_gather
from llmkit.parallel.context import WHOLE_ROWS, ContextParallel
from llmkit.parallel.mesh import TensorParallel


class Attention(nn.Module):
    """Multi-head attention with biases, grouped heads, QK-norm, rotary positions, value embeddings.

    Tensor parallelism shards it by heads. Where there are fewer key and value heads than ranks, each rank
    computes a piece of one and gathers the rest of it from its neighbours.
    """

    def __init__(
        self,
        shape: ModelShape,
        layer: int,
        tp: TensorParallel,
        operators: Operators = TORCH,
        context: ContextParallel = WHOLE_ROWS,
    ) -> None:
        super().__init__()
        self.layer, self.operators, self.tp, self.context = layer, operators, tp, context
        self.head_dim, self.rotary_dim, self.window = shape.head_dim, shape.rotary_dim, shape.window(layer)
        self.dropout, self.softcap = shape.attention_dropout, shape.attn_logit_softcapping
        query, grouped = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
        widths = {"q_proj": query, "k_proj": grouped, "v_proj": grouped}
        self.qkv = FusedColumnLinear(shape.hidden_size, widths, shape.attention_bias, tp, operators)
        self.o_proj = RowLinear(query, shape.hidden_size, shape.output_bias, tp, operators)
        self.qk_norm = shape.qk_norm
        how = (operators, shape.norm_weight, shape.norm_weight_offset)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if shape.qk_norm == "full":
            self.q_norm = WidthRMSNorm(query, shape.norm_eps, tp, *how)
            self.k_norm = WidthRMSNorm(grouped, shape.norm_eps, tp, *how)
        elif shape.qk_norm:
            self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps, tp.group, *how)
            self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps, tp.group, *how)
        self.value_embedding = ValueEmbedding(shape, tp) if shape.has_value_embedding(layer) else None
        self.shifted_pairs = shape.shifted_key_pairs
        self.query_scale = 1.0 if shape.tables_hold_scale else shape.attention_scale

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        """x: (batch, seq, hidden), or its piece of the sequence -> the same shape."""
        q, k, v = self.qkv(x)  # (batch, seq, heads / tp * head_dim)
        if self.value_embedding is not None:
            v = v + self.value_embedding(inputs.tokens, x)
        if self.qk_norm == "full":
            q, k = self._normed(q, k)
        if self.tp.head_group is not None:
            k, v = all_gather(torch.stack((k, v)), 3, self.tp.head_group).unbind()
        q, k, v = (
            each.unflatten(-1, (-1, self.head_dim)) for each in (q, k, v)
        )  # (batch, seq, heads, head_dim)
        if self.shifted_pairs:
            k = self._partly_shifted(k, inputs)
        if self.qk_norm is True:
            q, k = self._normed(q, k)
        if inputs.rope is not None:
            other = None if self.window is None else inputs.sliding_rope
            q, k = self._rotated(q, k, other or inputs.rope)
        if self.query_scale != 1.0:
            q = q * self.query_scale
        if inputs.cache is not None:
            k, v = inputs.cache.extend(self.layer, k, v)  # (batch, cached + seq, kv_heads, head_dim)
        if inputs.cache is not None and not inputs.cache.even:
            mixed = masked(q, k, v, inputs.cache.visible(self.window), softcap=self.softcap)
        else:
            mixed = self._mixed(q, k, v, inputs)
        return self.o_proj(mixed.flatten(-2))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, inputs: BlockInputs) -> Tensor:
        """Attention; of a piece of rows together with the ranks that have the others."""
        attention, dropout = self.operators.attention, self.dropout if self.training else 0.0
        if inputs.piece is not None:
            return attend_across_ranks(
                attention, q, k, v, self.context, inputs.piece,
                window=self.window, bounds=inputs.bounds, dropout=dropout, softcap=self.softcap,
            )  # fmt: skip
        mixed: Tensor = attention(
            q, k, v,
            window=self.window,
            documents=inputs.documents,
            bounds=inputs.bounds,
            dropout=dropout,
            softcap=self.softcap,
        )  # fmt: skip
        return mixed

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        assert self.q_norm is not None and self.k_norm is not None
        return self.q_norm(q), self.k_norm(k)

    def _rotated(self, q: Tensor, k: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor]:
        """q, k: (batch, seq, heads, head_dim), of each head the first `rotary_dim` channels rotated."""
        if self.rotary_dim == self.head_dim:
            return self._turned(q, k, *rope)
        (q, rest_q), (k, rest_k) = (each.tensor_split((self.rotary_dim,), -1) for each in (q, k))
        q, k = self._turned(q, k, *rope)
        return torch.cat((q, rest_q), -1), torch.cat((k, rest_k), -1)

    def _turned(self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """q and k by the tables of `BlockInputs`."""
        if cos.dim() == 2:
            return self.operators.rotate(q, k, cos, sin)
        # Of rows with positions of their own: as one row, which is what the operator takes.
        tables = cos.flatten(0, 1), sin.flatten(0, 1)
        turned = self.operators.rotate(q.flatten(0, 1)[None], k.flatten(0, 1)[None], *tables)
        return turned[0].view_as(q), turned[1].view_as(k)

    def _partly_shifted(self, k: Tensor, inputs: BlockInputs) -> Tensor:
        """k: (batch, seq, kv_heads, head_dim); its slowest pairs become those of the position before."""
        cached = None if inputs.cache is None else inputs.cache.before(self.layer, k)
        earlier = shift(k, inputs.begins, cached, inputs.piece, self.context)
        half = self.head_dim // 2  # channel i rotates with channel half + i, the slower the larger i
        kept = half - self.shifted_pairs
        own, before = (each.unflatten(-1, (2, half)) for each in (k, earlier))
        return torch.cat((own[..., :kept], before[..., kept:]), -1).flatten(-2)
