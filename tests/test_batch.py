"""What crosses the seams between data and model."""

from __future__ import annotations

import torch

from llmkit.batch import IGNORE, Rows, document_bounds, documents_of, split_pairs
from llmkit.config.context import row_pieces
from llmkit.kernels.attention import sdpa as attention


def test_the_bounds_of_documents_are_those_at_which_attention_ends():
    torch.manual_seed(0)
    documents = torch.tensor([[0, 0, 1, 1, 1, 4, 4], [2, 2, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6]]).int()
    begins = torch.zeros(3, 7, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    bounds = document_bounds(begins)
    assert (bounds.tolist(), bounds.dtype) == ([0, 2, 5, 7, *range(14, 21), *[21] * 5], torch.int32)
    assert not begins[:, 0].any()  # what was given is as it was
    assert document_bounds(torch.ones(1, 64, dtype=torch.bool)).tolist() == [*range(64), *[64] * 64]
    q, k, v = torch.randn(3, 3, 7, 2, 4).unbind()  # (batch, seq, heads, head_dim)
    whole = attention(q, k, v, documents=documents).flatten(0, 1)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = [each.flatten(0, 1)[begin:end][None] for each in (q, k, v)]
        torch.testing.assert_close(attention(*part)[0], whole[begin:end])


def test_rows_become_a_batch_where_it_is_used():
    text = torch.tensor([[9, 0, 5, 5, 0, 0, 7, 3], [0, 1, 1, 1, 1, 1, 0, 2]], dtype=torch.int32)
    is_target = torch.ones(2, 7, dtype=torch.bool)
    is_target[0, :3] = False
    batch = Rows.of(text, is_target, 0).to(torch.device("cpu"))
    assert [each.dtype for each in batch if each is not None] == [torch.int64] * 2 + [torch.int32] * 2
    assert all(each.is_contiguous() for each in batch if each is not None)
    assert batch.tokens.tolist() == text[:, :-1].tolist()
    assert batch.labels.tolist() == [[IGNORE, IGNORE, IGNORE, 0, 0, 7, 3], [1, 1, 1, 1, 1, 0, 2]]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 1, 1, 1, 2, 3, 3], [1, 1, 1, 1, 1, 1, 2]]
    assert batch.bounds is not None and batch.bounds.tolist() == [0, 1, 4, 5, 7, 13, *[14] * 10]
    plain = Rows.of(text, None, None).to(torch.device("cpu"))
    assert (plain.labels.tolist(), *plain[2:]) == (text[:, 1:].tolist(), *[None] * 5)


def test_the_sources_of_rows_go_with_them():
    sources = torch.tensor([[True, False], [False, True]])
    rows = Rows.of(torch.zeros(2, 3, dtype=torch.int32), None, None, sources=sources)
    batch = rows.to(torch.device("cpu"))
    assert batch.sources is sources and batch.to(torch.device("cpu")).sources is sources


def test_rows_for_a_gpu_are_pinned_and_others_left_as_they_are(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: (pinned.append(self), self.clone())[1])
    rows = Rows.of(torch.zeros(1, 3, dtype=torch.int32), torch.ones(1, 2, dtype=torch.bool), end_of_text=7)
    assert rows.pinned_for(torch.device("cpu")) is rows and not pinned
    found = rows.pinned_for(torch.device("cuda"))
    assert {id(each) for each in pinned} == {id(each) for each in (rows.tokens, rows.is_target, rows.bounds)}
    assert torch.equal(found.tokens, rows.tokens) and found.tokens is not rows.tokens
    assert found.is_target is not rows.is_target and found.end_of_text == 7
    assert rows._replace(is_target=None).pinned_for(torch.device("cuda")).is_target is None


def test_pairs_become_two_sequences_that_share_a_token() -> None:
    rows = torch.arange(14).view(2, 7)
    assert split_pairs(rows).tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [7, 8, 9, 10], [10, 11, 12, 13]]
    assert split_pairs(rows[:, :6], 0).tolist() == [[0, 1, 2], [3, 4, 5], [7, 8, 9], [10, 11, 12]]


def test_a_piece_of_rows_is_that_piece_of_their_batch():
    """What is cut on the host, before anything is copied, and what is cut of the whole batch."""
    cpu = torch.device("cpu")
    torch.manual_seed(0)
    text = torch.randint(4, (3, 24), dtype=torch.int32)
    is_target = torch.rand(3, 23) < 0.8
    is_target[2] = False
    rows = Rows.of(text, is_target, 0, sources=torch.eye(3, dtype=torch.bool))
    whole = rows.to(cpu)
    for form in ("ulysses", "ring"):
        for ranges in row_pieces(23, 4, form):
            piece, expected = rows.cut(ranges).to(cpu), whole.cut(ranges)
            place = [at for start, stop in ranges for at in range(start, stop)]
            assert torch.equal(piece.tokens, whole.tokens[:, place])
            assert torch.equal(piece.labels, whole.labels[:, place])
            assert torch.equal(piece.tokens, expected.tokens) and torch.equal(piece.labels, expected.labels)
            assert same_documents(piece.documents, whole.documents[:, place])
            assert same_documents(piece.piece.documents, whole.documents)
            assert (
                piece.piece.has_target.tolist() == expected.piece.has_target.tolist() == [True, True, False]
            )
            assert (piece.row_length, piece.piece.ranges, piece.sources) == (23, ranges, rows.sources)
            assert rows.cut(ranges).tokens.shape[1] == len(place) + len(ranges)  # nothing else is copied
            unknown = rows._replace(bounds=None).cut(ranges)  # made without `of`
            assert torch.equal(unknown.bounds, rows.bounds)
            assert same_documents(unknown.to(cpu).documents, piece.documents)
    assert rows.cut(None) is rows and whole.cut(None) is whole and whole.row_length == 23
    plain = Rows.of(text, None, None).cut(((0, 5),)).to(cpu)
    assert plain.piece is not None and plain.piece.documents is plain.piece.has_target is None


def same_documents(one, other):
    """Whether the same positions of a row are in one document, whatever its number."""
    return torch.equal(one[:, 1:] != one[:, :-1], other[:, 1:] != other[:, :-1]) and one.dtype == torch.int32


def test_documents_are_found_again_in_their_bounds():
    begins = torch.tensor([[0, 0, 1, 0], [0, 1, 0, 1]], dtype=torch.bool)
    assert documents_of(document_bounds(begins), 2, 4).tolist() == [[1, 1, 2, 2], [3, 4, 4, 5]]
