"""Which positions the tokens of a forward pass have."""

from __future__ import annotations

import torch

from llmkit.model.cache import KeyValueCache
from llmkit.model.positions import Span
from llmkit.model.rope import rope_tables
from tests.shapes import LLAMA_STYLE

CPU = torch.device("cpu")
TOKENS = torch.zeros(2, 7, dtype=torch.int64)


def test_tokens_follow_what_the_cache_holds():
    assert Span.of(TOKENS, None) == Span(0, 7)
    cache = KeyValueCache(LLAMA_STYLE, 2, 20, torch.zeros(()))
    cache.length = 5
    assert Span.of(TOKENS, cache) == Span(5, 12)


def test_positions_begin_anew_with_each_document():
    documents = torch.tensor([[0, 0, 0, 2, 2, 5, 6], [3] * 7], dtype=torch.int32)
    assert Span(0, 7).ids(documents, CPU).tolist() == [[0, 1, 2, 0, 1, 0, 0], list(range(7))]
    assert Span(4, 7).ids(None, CPU).tolist() == [4, 5, 6]


def test_rotary_tables_are_those_of_the_positions():
    tables = rope_tables(20, 6, 1e4)
    for found, table in zip(Span(5, 12).rope(tables), tables, strict=True):
        assert torch.equal(found, table[[5, 6, 7, 8, 9, 10, 11]])
