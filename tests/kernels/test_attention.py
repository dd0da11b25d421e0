"""The forms of attention against a plain fp64 reference, position by position."""

from __future__ import annotations

import math

import pytest
import torch

from llmkit.kernels.attention import decoding, masked, sdpa
from llmkit.kernels.attention_blocks import blocks, matmul
from tests.kernels.dense_attention import dense

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def reference(q, k, v, window, documents):
    """One query at a time in fp64: a different program than the one under test."""
    q, k, v = q.double(), k.double(), v.double()
    batch, queries, heads, width = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    rows = []
    for b in range(batch):
        for i in range(queries):
            place = keys - queries + i
            seen = [
                j
                for j in range(place + 1)
                if (window is None or place - j < window)
                and (documents is None or documents[b, j] == documents[b, place])
            ]
            for h in range(heads):
                scores = k[b, seen, h // group] @ q[b, i, h] / math.sqrt(width)
                rows.append(scores.softmax(0) @ v[b, seen, h // group])
    return torch.stack(rows).view(batch, queries, heads, width)


def inputs(queries, keys, heads=6, kv_heads=2, width=10):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, queries, heads, width), (2, keys, kv_heads, width), (2, keys, kv_heads, width)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("attention", [sdpa, blocks, matmul])
@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "documents"])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize(("queries", "keys", "kv_heads"), [(13, 13, 2), (13, 13, 6), (1, 9, 2), (5, 9, 1)])
def test_equals_the_reference(queries, keys, kv_heads, window, packed, attention):
    tensors = inputs(queries, keys, kv_heads=kv_heads)
    documents = torch.tensor([[0] * 3 + [1] * (keys - 3), [5] * (keys - 1) + [6]]) if packed else None
    found = attention(*tensors, window=window, documents=documents)
    wanted = reference(*tensors, window, documents)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    found_gradients = torch.autograd.grad((found * weight).sum(), tensors)
    wanted_gradients = torch.autograd.grad((wanted * weight.double()).sum(), tensors)
    for a, b in zip(found_gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", [sdpa, blocks, matmul])
def test_dropout_keeps_the_mean(attention):
    q, k, v = inputs(8, 8)
    torch.manual_seed(0)
    plain = attention(q, k, v)
    many = attention(*(t.repeat(1000, 1, 1, 1) for t in (q, k, v)), dropout=0.5)
    many = many.view(1000, *plain.shape)
    assert not torch.equal(many[0], many[1])
    torch.testing.assert_close(many.mean(0), plain, rtol=0, atol=0.25)


@pytest.mark.parametrize("attention", [blocks, matmul])
def test_softmax_is_in_fp32_under_bf16(attention):
    q, k, v = (t.detach().bfloat16() for t in inputs(12, 12))
    q = q * 8  # large scores: bf16 softmax would be off by per cents
    found = attention(q, k, v).double()
    wanted = reference(q, k, v, None, None)
    assert (found - wanted).norm() / wanted.norm() < 8e-3


def test_tokens_are_generated_without_cudnn_on_a_gpu():
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with decoding(GPU):
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with decoding(CPU):
        assert torch.backends.cuda.cudnn_sdp_enabled() == before


def test_a_query_behind_a_window_needs_no_mask(monkeypatch):
    monkeypatch.setattr("llmkit.kernels.attention.tile_mask", None)
    q, k, v = inputs(1, 50)
    torch.testing.assert_close(
        sdpa(q, k, v, window=7).double(), reference(q, k, v, 7, None), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(("queries", "kv_heads", "scale"), [(1, 2, None), (3, 1, 0.4), (2, 6, None)])
def test_each_row_sees_the_keys_of_its_mask(queries, kv_heads, scale, softcap):
    """Rows of different lengths: each as the attention of its own keys alone."""
    q, k, v = (x.detach() for x in inputs(queries, 12, kv_heads=kv_heads))
    lengths = (7, 12)
    query = torch.tensor(lengths)[:, None] - queries + torch.arange(queries)
    visible = torch.arange(12) <= query[..., None]
    found = masked(q, k, v, visible, softcap=softcap, scale=scale)
    for row, length in enumerate(lengths):
        own = (x[row : row + 1, :length] for x in (k, v))
        wanted = dense(q[row : row + 1], *own, softcap=softcap, scale=scale)
        torch.testing.assert_close(found[row : row + 1], wanted, rtol=1e-5, atol=1e-6)
