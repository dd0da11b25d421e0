"""The key-value cache of generation."""

from __future__ import annotations

import torch
from torch import Tensor

from llmkit.config.shape import ModelShape


class KeyValueCache:
    """Keys and values of the positions so far, in one buffer for all layers.

    buffer: (layers, 2, batch, capacity, kv_heads, head_dim). last: (layers, batch, 1, kv_heads, head_dim), of
    the newest position what `before` was given; token: (batch, 1), the newest. length: positions that every
    layer has stored; `GPT.logits` advances it.
    """

    def __init__(self, shape: ModelShape, batch: int, capacity: int, like: Tensor) -> None:
        heads, width = shape.num_key_value_heads, shape.head_dim
        size = (shape.num_hidden_layers, 2, batch, capacity, heads, width)
        self.buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        self.last = torch.zeros(shape.num_hidden_layers, batch, 1, heads, width).to(self.buffer)
        self.token = torch.zeros(batch, 1, dtype=torch.int64, device=like.device)
        self.length = 0

    def token_before(self, tokens: Tensor) -> Tensor:
        """The token before `tokens`, (batch, seq): the last one that this was given; at the start 0."""
        earlier = self.token if self.length else torch.zeros_like(self.token)
        self.token = tokens[:, -1:]
        return earlier

    def before(self, layer: int, key: Tensor) -> Tensor:
        """What this was given for the position before `key`, (batch, seq, kv_heads, head_dim); else zeros."""
        earlier = self.last[layer].clone() if self.length else torch.zeros_like(key[:, :1])
        self.last[layer] = key[:, -1:]
        return earlier

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends key and value, (batch, seq, kv_heads, head_dim) each; returns those of all positions."""
        stop = self.length + key.shape[1]
        self.buffer[layer, 0, :, self.length : stop] = key
        self.buffer[layer, 1, :, self.length : stop] = value
        return self.buffer[layer, 0, :, :stop], self.buffer[layer, 1, :, :stop]
