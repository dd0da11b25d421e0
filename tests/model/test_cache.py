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


def test_the_position_before_is_that_of_the_same_layer_and_nothing_at_the_start():
    heads, width = LLAMA_STYLE.num_key_value_heads, LLAMA_STYLE.head_dim
    cache = KeyValueCache(LLAMA_STYLE, 2, 9, torch.zeros(()))
    keys = torch.randn(2, 2, 7, heads, width)  # of two layers
    for _ in range(2):  # the second time anew
        for start, stop in ((0, 4), (4, 5), (5, 7)):
            for layer, key in enumerate(keys):
                found = cache.before(layer, key[:, start:stop])
                assert torch.equal(
                    found, key[:, start - 1 : start] if start else torch.zeros(2, 1, heads, width)
                )
            cache.length = stop
        cache.length = 0


def test_the_token_before_is_the_last_that_was_given():
    cache, tokens = KeyValueCache(LLAMA_STYLE, 2, 9, torch.zeros(())), torch.arange(1, 15).view(2, 7)
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        found = cache.token_before(tokens[:, start:stop])
        assert found.tolist() == (tokens[:, start - 1 : start].tolist() if start else [[0], [0]])
        cache.length = stop
