"""The key-value cache of generation."""

from __future__ import annotations

import torch
from torch import Tensor

from llmkit.config.shape import ModelShape


class KeyValueCache:
    """Keys and values of the positions so far, in one buffer for all layers.

    buffer: (layers, 2, batch, capacity, kv_heads, head_dim). length: positions that every layer has stored;
    `GPT.logits` advances it.
    """

    def __init__(self, shape: ModelShape, batch: int, capacity: int, like: Tensor) -> None:
        heads, width = shape.num_key_value_heads, shape.head_dim
        size = (shape.num_hidden_layers, 2, batch, capacity, heads, width)
        self.buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Appends key and value, (batch, seq, kv_heads, head_dim) each; returns those of all positions."""
        stop = self.length + key.shape[1]
        self.buffer[layer, 0, :, self.length : stop] = key
        self.buffer[layer, 1, :, self.length : stop] = value
        return self.buffer[layer, 0, :, :stop], self.buffer[layer, 1, :, :stop]
