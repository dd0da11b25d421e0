"""Blocks of a ring by a fused kernel and by products of matrices."""

from __future__ import annotations

import pytest
import torch

from llmkit.kernels.attention_ring_blocks import Block, Rule, backward_of_block, result_of_block

HEADS, KV_HEADS, WIDTH, RULE = 8, 2, 64, Rule(None, 0.125, None)


@pytest.mark.parametrize("own", [True, False], ids=["own keys", "keys before"])
def test_both_ways_give_the_same(device, own):
    each = 1024 if device.type == "cuda" else 48
    draw = torch.Generator().manual_seed(0)
    q, k, v, above = (
        torch.randn(2, 2 * each, heads, WIDTH, generator=draw).to(device, torch.bfloat16)
        for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)
    )
    late = slice(each, 2 * each)
    block = Block(late, late, each, each) if own else Block(late, slice(0, each), each, 0)
    documents = torch.zeros(2, 2 * each, dtype=torch.int32, device=device)  # one: nothing more is hidden
    found = []
    for numbers in (None, documents):
        out, sums = result_of_block(q, k, v, block, RULE, numbers)
        whole_out, whole_sums = torch.zeros_like(q), torch.zeros(2, HEADS, 2 * each, device=device)
        whole_out[:, late], whole_sums[:, :, late] = out.transpose(1, 2).to(q.dtype), sums
        mean = (above.float() * whole_out.float()).sum(-1).transpose(1, 2)
        given = (above, q, k, v, whole_out, whole_sums, mean, block, RULE, numbers)
        found.append([out, sums, *backward_of_block(*given)])
    for fused, products in zip(*found, strict=True):
        off = (fused.double() - products.double()).norm() / products.double().norm()
        assert float(off) < 8e-3
