"""The cache gives back what it was given, position by position."""

from __future__ import annotations

import torch

from llmkit.model.cache import KeyValueCache
from tests.shapes import LLAMA_STYLE


def test_positions_are_kept_for_each_layer_until_the_model_moves_on():
    heads, width = LLAMA_STYLE.num_key_value_heads, LLAMA_STYLE.head_dim
    cache = KeyValueCache(LLAMA_STYLE, 2, 9, torch.zeros((), dtype=torch.bfloat16))
    key, value = torch.randn(2, LLAMA_STYLE.num_hidden_layers, 2, 7, heads, width).bfloat16()
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        for layer in range(LLAMA_STYLE.num_hidden_layers):
            keys, values = cache.extend(layer, key[layer][:, start:stop], value[layer][:, start:stop])
            assert torch.equal(keys, key[layer][:, :stop]) and torch.equal(values, value[layer][:, :stop])
        cache.length = stop
