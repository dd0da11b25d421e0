"""Blocks of a ring by fused attention: which blocks, and how the kernels are called.

That what they give makes attention and its gradients is tested with the blocks.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from llmkit.kernels import attention_ring_fused
from llmkit.kernels.attention_ring_blocks import Block, Rule, _fused
from tests.kernels.dense_attention import tensors

BATCH, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 16
PLAIN = Rule(None, 0.25, None)


def block(query: range, key: range, behind: int = 0) -> Block:
    """Of the same piece; its positions begin with `behind`."""
    places = slice(query.start, query.stop), slice(key.start, key.stop)
    return Block(*places, behind + query.start, behind + key.start)


@pytest.mark.parametrize(
    ("which", "rule", "masked", "wanted"),
    [
        (block(range(4, 8), range(0, 4)), PLAIN, False, False),
        (block(range(4, 8), range(0, 5)), PLAIN, False, False),  # the first query is the last key
        (block(range(4, 8), range(4, 8)), PLAIN, False, True),
        (block(range(4, 8), range(4, 8), behind=9), PLAIN, False, True),
        (block(range(4, 8), range(2, 8)), PLAIN, False, None),
        (block(range(4, 8), range(4, 6)), PLAIN, False, None),
        (block(range(4, 8), range(0, 4)), PLAIN, True, None),
        (block(range(4, 8), range(0, 4)), PLAIN._replace(softcap=5.0), False, None),
        (block(range(4, 8), range(0, 4)), PLAIN._replace(window=8), False, False),
        (block(range(4, 8), range(0, 4)), PLAIN._replace(window=7), False, None),
        (block(range(4, 8), range(4, 8)), PLAIN._replace(window=4), False, True),
    ],
)  # fmt: skip
def test_blocks_whose_queries_see_all_keys_or_those_up_to_themselves(which, rule, masked, wanted):
    documents = torch.zeros(1, 8, dtype=torch.int32) if masked else None
    assert _fused(torch.zeros(1, 8, HEADS, WIDTH), which, rule, documents) is wanted


@pytest.mark.parametrize("causal", [False, True])
def test_kernels_of_a_gpu_take_what_they_are_given(causal):
    """On tensors without data: names, order and shapes of arguments and results."""
    with FakeTensorMode():
        q, k, v = (
            torch.empty(BATCH, 8, heads, WIDTH, dtype=torch.bfloat16, device="cuda")
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        out, sums = attention_ring_fused.forward(q, k, v, causal, 0.25)
        assert out.shape == (BATCH, HEADS, 8, WIDTH) and out.dtype == torch.bfloat16
        assert sums.shape == (BATCH, HEADS, 8) and sums.dtype == torch.float32
        given = (q, q, k, v, out.transpose(1, 2), sums)
        found = attention_ring_fused.backward(*given, causal, 0.25)
        assert [each.shape for each in found] == [each.shape for each in (q, k, v)]
        assert {each.device.type for each in (out, sums, *found)} == {"cuda"}


@pytest.mark.parametrize(
    ("dtype", "width", "capability", "wanted"),
    [
        (torch.bfloat16, 128, (9, 0), True), (torch.float16, 256, (8, 0), True),
        (torch.bfloat16, 128, (7, 5), False), (torch.float32, 128, (9, 0), False),
        (torch.bfloat16, 100, (9, 0), False), (torch.bfloat16, 264, (9, 0), False),
    ],
)  # fmt: skip
def test_a_gpu_has_a_kernel_for_16_bits_and_some_widths(dtype, width, capability, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        q = torch.empty(1, 8, 1, width, dtype=dtype, device="cuda")
        assert attention_ring_fused.has_kernel(q) is wanted


def test_gradients_of_copied_heads_are_summed():
    """Beside a call for each head of queries with the head of keys that it shares."""
    q, k, v = (x.detach() for x in tensors((2, 9, 9), (HEADS, KV_HEADS), WIDTH, torch.float64))
    above = torch.randn(q.shape, dtype=q.dtype, generator=torch.Generator().manual_seed(1))

    def both(q: Tensor, k: Tensor, v: Tensor, above: Tensor) -> list[Tensor]:
        out, sums = attention_ring_fused.forward(q, k, v, True, 0.25)
        out = out.transpose(1, 2)
        return [out, *attention_ring_fused.backward(above, q, k, v, out, sums, True, 0.25)]

    found, each = both(q, k, v, above), HEADS // KV_HEADS
    alone = [
        both(q[:, :, [n]], k[:, :, [n // each]], v[:, :, [n // each]], above[:, :, [n]]) for n in range(HEADS)
    ]
    for at, (mine, single) in enumerate(zip(found, zip(*alone, strict=True), strict=True)):
        wanted = torch.cat(single, 2)
        if at >= 2:
            wanted = wanted.unflatten(2, (KV_HEADS, each)).sum(3)
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
