"""The cache gives back what it was given, position by position, of each row."""

from __future__ import annotations

import torch

from llmkit.model.cache import KeyValueCache
from tests.shapes import LLAMA_STYLE

HEADS, WIDTH, LAYERS = LLAMA_STYLE.num_key_value_heads, LLAMA_STYLE.head_dim, LLAMA_STYLE.num_hidden_layers


def test_positions_are_kept_for_each_layer_until_the_model_moves_on():
    cache = KeyValueCache(LLAMA_STYLE, torch.zeros((), dtype=torch.bfloat16))
    key, value = torch.randn(2, LAYERS, 2, 7, HEADS, WIDTH).bfloat16()
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        rows = cache.rows([stop - start] * 2)
        for layer in range(LAYERS):
            keys, values = rows.extend(layer, key[layer][:, start:stop], value[layer][:, start:stop])
            assert torch.equal(keys, key[layer][:, :stop]) and torch.equal(values, value[layer][:, :stop])
        rows.advance()


def test_rows_of_any_lengths_grow_move_and_are_cleared():
    """Against lists: rows begin at any time, with padding behind the shorter ones."""
    cache, generator = KeyValueCache(LLAMA_STYLE, torch.zeros(())), torch.Generator().manual_seed(0)
    held: list[torch.Tensor] = []

    def give(counts, first=0):
        rows = cache.rows(counts, first)
        given = torch.randn(2, len(counts), max(counts), HEADS, WIDTH, generator=generator)
        held.extend(torch.empty(2, 0, HEADS, WIDTH) for _ in range(first + len(counts) - len(held)))
        found = rows.extend(1, *given)
        seen = rows.visible(3)
        for place, count in enumerate(counts):
            row = first + place
            held[row] = torch.cat((held[row], given[:, place, :count]), 1)
            stop = held[row].shape[1]
            assert torch.equal(torch.stack(found)[:, place, :stop], held[row])
            for number in range(count):
                newest = stop - count + number
                wanted = [position for position in range(newest - 2, newest + 1) if position >= 0]
                assert seen[place, number].nonzero()[:, 0].tolist() == wanted
        rows.advance()

    give([3, 5])
    give([1, 1])
    give([40, 2, 17], first=2)
    give([1] * 5)
    give([2, 1, 3], first=1)
    cache.move(4, 0)
    held[0] = held[4]
    cache.clear(4)
    held[4] = held[4][:, :0]
    assert cache.lengths == [len(each[0]) for each in held]
    give([1, 1, 1, 1])
    give([7], first=4)
    give([1] * 5)


def test_the_position_before_is_that_of_the_same_layer_and_row_and_nothing_at_the_start():
    cache = KeyValueCache(LLAMA_STYLE, torch.zeros(()))
    keys = torch.randn(2, 2, 7, HEADS, WIDTH)  # of two layers
    for _ in range(2):  # the second time anew
        for start, stop in ((0, 4), (4, 5), (5, 7)):
            rows = cache.rows([stop - start] * 2)
            for layer, key in enumerate(keys):
                found = rows.before(layer, key[:, start:stop])
                wanted = key[:, start - 1 : start] if start else torch.zeros(2, 1, HEADS, WIDTH)
                assert torch.equal(found, wanted)
            rows.advance()
        cache.clear(0), cache.clear(1)
    cache.rows([4, 2]).before(0, keys[0][:, :4])
    found = cache.rows([1, 1]).before(0, keys[0][:, :1])
    assert torch.equal(found[0, 0], keys[0][0, 3]) and torch.equal(found[1, 0], keys[0][1, 1])


def test_the_token_before_is_the_last_that_was_given():
    cache, tokens = KeyValueCache(LLAMA_STYLE, torch.zeros(())), torch.arange(1, 15).view(2, 7)
    for start, stop in ((0, 4), (4, 5), (5, 7)):
        rows = cache.rows([stop - start] * 2)
        found = rows.token_before(tokens[:, start:stop])
        assert found.tolist() == (tokens[:, start - 1 : start].tolist() if start else [[0], [0]])
        rows.advance()
    cache.rows([3, 2]).token_before(tokens[:, :3])
    cache.move(1, 0)
    assert cache.rows([1, 1]).token_before(tokens[:, :1]).tolist() == [[9], [9]]
