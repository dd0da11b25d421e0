"""The keys and values that generation keeps of the positions read so far."""

from __future__ import annotations

import torch
from torch import Tensor

from llmkit.config.shape import ModelShape


class KeyValueCache:
    """Keys and values of the positions seen so far, one buffer for all layers.

    `length` counts the positions that every layer has stored; `GPT.logits` moves it on.
    """

    def __init__(self, shape: ModelShape, batch: int, capacity: int, like: Tensor) -> None:
        heads, width = shape.num_key_value_heads, shape.head_dim
        size = (shape.num_hidden_layers, 2, batch, capacity, heads, width)
        self.buffer = torch.empty(size, dtype=like.dtype, device=like.device)
        self.length = 0

    def extend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (batch, seq, kv_heads, head_dim) behind the earlier positions; returns all of them."""
        stop = self.length + key.shape[1]
        self.buffer[layer, 0, :, self.length : stop] = key
        self.buffer[layer, 1, :, self.length : stop] = value
        return self.buffer[layer, 0, :, :stop], self.buffer[layer, 1, :, :stop]
