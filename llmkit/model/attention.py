"""Causal self-attention with grouped keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmkit.config.shape import ModelShape
from llmkit.kernels.attention import attention
from llmkit.model.cache import KeyValueCache
from llmkit.model.layers import FusedColumnLinear, RowLinear
from llmkit.model.norm import RMSNorm
from llmkit.model.rope import rotate
from llmkit.parallel.collectives import all_gather
from llmkit.parallel.mesh import TensorParallel


class Attention(nn.Module):
    """Multi-head attention with biases, grouped heads, QK-norm and rotary positions as configured.

    Cut by heads. Where there are fewer key and value heads than ranks, each rank computes a piece of one
    and gathers the rest of it from its neighbours.
    """

    def __init__(self, shape: ModelShape, layer: int, attention_impl: str, tensor: TensorParallel) -> None:
        super().__init__()
        self.layer, self.attention_impl, self.tensor = layer, attention_impl, tensor
        self.head_dim, self.window = shape.head_dim, shape.sliding_window
        self.dropout = shape.attention_dropout
        query, grouped = (n * shape.head_dim for n in (shape.num_attention_heads, shape.num_key_value_heads))
        widths = {"q_proj": query, "k_proj": grouped, "v_proj": grouped}
        self.qkv = FusedColumnLinear(shape.hidden_size, widths, shape.attention_bias, tensor)
        self.o_proj = RowLinear(query, shape.hidden_size, shape.attention_bias, tensor)
        self.q_norm = RMSNorm(shape.head_dim, shape.norm_eps, tensor.group) if shape.qk_norm else None
        self.k_norm = RMSNorm(shape.head_dim, shape.norm_eps, tensor.group) if shape.qk_norm else None

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x: (batch, seq, hidden) -> (batch, seq, hidden); rope: the tables of these positions."""
        q, k, v = self.qkv(x)
        if self.tensor.head_group is not None:
            k, v = all_gather(torch.stack((k, v)), 3, self.tensor.head_group).unbind()
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        dropout = self.dropout if self.training else 0.0
        mixed = attention(
            q,
            k,
            v,
            window=self.window,
            documents=documents,
            dropout=dropout,
            attention_impl=self.attention_impl,
        )
        return self.o_proj(mixed.flatten(-2))
