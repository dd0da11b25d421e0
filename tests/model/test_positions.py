"""Which positions the tokens of a forward pass have."""

from __future__ import annotations

import torch

from llmkit.batch import RowPiece
from llmkit.model.cache import KeyValueCache
from llmkit.model.positions import Span, first_tokens, shift
from llmkit.model.rope import rope_tables
from tests.shapes import LLAMA_STYLE

CPU = torch.device("cpu")
TOKENS = torch.zeros(2, 7, dtype=torch.int64)


def test_tokens_follow_what_the_cache_holds():
    assert Span.of(TOKENS, None) == Span(((0, 7),))
    cache = KeyValueCache(LLAMA_STYLE, torch.zeros(()))
    cache.rows([5, 5]).advance()
    assert Span.of(TOKENS, cache.rows([7, 7])) == Span(((5, 12),))


def test_rows_of_different_lengths_have_positions_of_their_own_within_the_context():
    cache = KeyValueCache(LLAMA_STYLE, torch.zeros(()))
    cache.rows([3, 46]).advance()
    span = Span.of(TOKENS[:, :3], cache.rows([3, 2]))
    assert span.ids(None, CPU).tolist() == [[3, 4, 5], [46, 47, 47]]
    tables = rope_tables(48, 6, 1e4)
    for found, table in zip(span.rope(tables), tables, strict=True):
        assert torch.equal(found[0], table[3:6]) and torch.equal(found[1, :2], table[46:])


def test_positions_begin_anew_with_each_document():
    documents = torch.tensor([[0, 0, 0, 2, 2, 5, 6], [3] * 7], dtype=torch.int32)
    assert Span(((0, 7),)).ids(documents, CPU).tolist() == [[0, 1, 2, 0, 1, 0, 0], list(range(7))]
    assert Span(((4, 7),)).ids(None, CPU).tolist() == [4, 5, 6]


def test_a_piece_has_the_positions_of_its_row():
    documents = torch.tensor([[0, 0, 0, 2, 2, 5, 6], [3] * 7], dtype=torch.int32)
    span = Span.of(TOKENS[:, :4], None, RowPiece(((1, 3), (5, 7)), 7, documents))
    assert span.ids(None, CPU).tolist() == [1, 2, 5, 6]
    assert span.ids(documents, CPU).tolist() == [[1, 2, 0, 0], [1, 2, 5, 6]]
    tables = rope_tables(20, 6, 1e4)
    for found, table in zip(span.rope(tables), tables, strict=True):
        assert torch.equal(found, table[[1, 2, 5, 6]])


def test_rotary_tables_are_those_of_the_positions():
    tables = rope_tables(20, 6, 1e4)
    for found, table in zip(Span(((5, 12),)).rope(tables), tables, strict=True):
        assert torch.equal(found, table[[5, 6, 7, 8, 9, 10, 11]])


def test_what_is_shifted_comes_from_the_position_before_in_the_same_document():
    x = torch.arange(1.0, 15.0).view(1, 7, 2).expand(2, 7, 2)
    documents = torch.tensor([[0, 0, 0, 2, 2, 5, 6], [3] * 7], dtype=torch.int32)
    assert shift(x)[1, :, 0].tolist() == [0, 1, 3, 5, 7, 9, 11]
    assert shift(x, first_tokens(documents))[0, :, 0].tolist() == [0, 1, 3, 0, 7, 0, 0]
    assert torch.equal(shift(x[:, 3:], before=x[:, 2:3]), shift(x)[:, 3:])
