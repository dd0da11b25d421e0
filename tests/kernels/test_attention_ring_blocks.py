"""Attention block by block, put together, against attention to all keys at once; in fp64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmkit.config.context import row_pieces
from llmkit.kernels import attention_ring_blocks
from llmkit.kernels.attention_ring import _Ring
from llmkit.kernels.attention_ring_blocks import Block, Rule, backward_of_block, merged, result_of_block
from tests.kernels.dense_attention import dense, documents_of, tensors

LENGTH, RANKS = 23, 3
DOCUMENTS = documents_of([[5, 1, 12, 5], [LENGTH]])
CASES = {
    "plain": {}, "windows": {"window": 6}, "one position": {"window": 1},
    "documents": {"documents": DOCUMENTS},
    "all": {"documents": DOCUMENTS, "window": 9, "softcap": 1.5, "scale": 0.7},
}  # fmt: skip


def picked(x: Tensor, place: list[int]) -> Tensor:
    return x[:, place]


@pytest.mark.parametrize("scores", [10**6, 40])
@pytest.mark.parametrize("name", CASES)
def test_blocks_of_all_ranks_make_attention_and_its_gradients(name, scores, monkeypatch):
    """What each rank computes, one after the other, without any message. scores: at a time."""
    monkeypatch.setattr(attention_ring_blocks, "SCORES", scores)
    how = CASES[name]
    q, k, v = tensors((2, LENGTH, LENGTH), (4, 2), 6, torch.float64)
    expected = dense(q, k, v, **how)
    above = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(expected, (q, k, v), above)
    q, k, v = (x.detach() for x in (q, k, v))
    rule = Rule(how.get("window"), how.get("scale", 1 / math.sqrt(6)), how.get("softcap"))
    pieces = row_pieces(LENGTH, RANKS, "ring")
    places = [[at for start, stop in ranges for at in range(start, stop)] for ranges in pieces]
    found = [torch.zeros_like(x) for x in (q, k, v)]
    computed = 0
    for rank, own in enumerate(places):
        ring = _Ring(rank, RANKS, "", pieces)
        out = torch.zeros(2, 4, len(own), 6, dtype=torch.float64)
        sums = torch.full((2, 4, len(own)), -math.inf, dtype=torch.float64)
        owners = [(rank - turn) % RANKS for turn in range(RANKS)]
        blocks = [(owner, block) for owner in owners for block in ring.blocks(owner, rule.window)]
        computed += len(blocks)
        for owner, block in blocks:
            keys, values = picked(k, places[owner]), picked(v, places[owner])
            more = result_of_block(picked(q, own), keys, values, block, rule, how.get("documents"))
            at = block.query
            out[:, :, at], sums[:, :, at] = merged(out[:, :, at], sums[:, :, at], *more)
        torch.testing.assert_close(
            out.transpose(1, 2), picked(expected.detach(), own), rtol=1e-12, atol=1e-12
        )
        mean = (picked(above, own) * out.transpose(1, 2)).sum(-1).transpose(1, 2)
        for owner, block in blocks:
            keys, values = picked(k, places[owner]), picked(v, places[owner])
            part = backward_of_block(
                picked(above, own),
                picked(q, own),
                keys,
                values,
                out.transpose(1, 2),
                sums,
                mean,
                block,
                rule,
                how.get("documents"),
            )
            found[0][:, own[block.query]] += part.query
            found[1][:, places[owner][block.key]] += part.key
            found[2][:, places[owner][block.key]] += part.value
    for one, other in zip(found, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
    assert computed == {"plain": 21, "documents": 21, "one position": 6}.get(name, computed)
    assert computed <= 21, "of the pairs of 6 ranges those behind are left out"


def test_a_query_that_sees_nothing_in_a_block_adds_nothing():
    out, sums = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2)
    nothing = torch.zeros(1, 1, 2, 3), torch.tensor([[[-math.inf, 0.0]]])
    found, total = merged(out, sums, *nothing)
    assert found[0, 0].tolist() == [[1.0] * 3, [0.5] * 3]
    assert total[0, 0].tolist() == pytest.approx([0.0, math.log(2.0)])


@pytest.mark.parametrize("documents", [None, torch.zeros(1, 64)], ids=["fused", "products"])
def test_scores_of_bf16_are_not_rounded_to_it(documents):
    """Where they are large, that would be several times the error of PyTorch's attention."""
    q, k, v = (x.detach() for x in tensors((1, 64, 64), (4, 2), 32, torch.float32))
    q, k, v = ((x * factor).bfloat16() for x, factor in ((q, 4.0), (k, 4.0), (v, 1.0)))
    above = torch.randn(q.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    wanted = dense(*exact)
    gradients = torch.autograd.grad(wanted, exact, above.double())
    block, rule = Block(slice(0, 64), slice(0, 64), 0, 0), Rule(None, 1 / math.sqrt(32), None)
    out, sums = result_of_block(q, k, v, block, rule, documents)
    mean = (above.float() * out.transpose(1, 2)).sum(-1).transpose(1, 2)
    given = (above, q, k, v, out.transpose(1, 2).bfloat16(), sums, mean, block, rule, documents)
    found = [out.transpose(1, 2), *backward_of_block(*given)]
    for mine, other in zip(found, (wanted, *gradients), strict=True):
        assert float((mine - other).detach().norm() / other.detach().norm()) <= 8e-3
