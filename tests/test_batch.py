"""What crosses the seams between data and model."""

from __future__ import annotations

import torch

from llmkit.batch import Batch, cu_seqlens
from llmkit.kernels.attention import attention


def test_the_bounds_of_documents_are_those_at_which_attention_ends():
    torch.manual_seed(0)
    documents = torch.tensor([[0, 0, 1, 1, 1, 4, 4], [2, 2, 2, 2, 2, 2, 2], [0, 1, 2, 3, 4, 5, 6]]).int()
    bounds, longest = cu_seqlens(documents)
    assert (bounds.tolist(), bounds.dtype, longest) == ([0, 2, 5, 7, *range(14, 22)], torch.int32, 7)
    q, k, v = torch.randn(3, 3, 7, 2, 4).unbind()  # (batch, seq, heads, head_dim)
    whole = attention(q, k, v, documents=documents).flatten(0, 1)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        part = [each.flatten(0, 1)[begin:end][None] for each in (q, k, v)]
        torch.testing.assert_close(attention(*part)[0], whole[begin:end])


def test_a_batch_is_widened_where_it_is_used():
    tokens = torch.tensor([[1, 2]], dtype=torch.int32)
    there = Batch(tokens, tokens - 101, tokens).to(torch.device("cpu"))
    assert [each.dtype for each in there if each is not None] == [torch.int64, torch.int64, torch.int32]
    assert there.labels.tolist() == [[-100, -99]]
