"""What ranks that share rows hold in attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from llmkit.estimate.devices import Hardware
from llmkit.estimate.facts import facts_of
from llmkit.estimate.workload import RING, workload_of
from llmkit.kernels import attention_ring_blocks, attention_ring_fused
from llmkit.kernels.attention_ring_blocks import Block, Rule, backward_of_block
from llmkit.parallel.layout import Layout
from llmkit.plan import DeviceFacts, plan_for_shape
from llmkit.plan.arithmetic import Arithmetic
from llmkit.plan.context_memory import SCORE_BYTES, SCORES, received_width, ring_blocks
from llmkit.plan.memory import arithmetic
from llmkit.precision import PRECISIONS
from tests.shapes import LLAMA_STYLE

H100 = facts_of(Hardware().device("h100"))
SHAPE = replace(LLAMA_STYLE, num_attention_heads=12, num_key_value_heads=6, head_dim=16)


def layout(size: int, form: str, tensor: int = 1) -> Layout:
    ranks = {"tensor_parallel_size": tensor, "context_parallel_size": size}
    return Layout(world_size=size * tensor, context_parallel_form=form, **ranks)


@pytest.mark.parametrize(
    ("size", "tensor", "kv_heads"), [(2, 1, 6), (4, 1, 12), (3, 2, 6), (2, 3, 6), (2, 6, 12), (1, 2, 6)]
)
def test_key_and_value_heads_are_sent_as_often_as_ranks_need_them(size, tensor, kv_heads):
    """kv_heads: after repetition, over all ranks."""
    assert received_width(SHAPE, layout(size, "ulysses", tensor)) == (12 + 2 * kv_heads) * 16


def test_only_a_ring_has_blocks():
    how = Arithmetic(PRECISIONS["bf16"], layout(4, "ulysses"), False, False, {}, length=4096)
    assert ring_blocks(SHAPE, how).of(1024) == 0
    how = replace(how, layout=layout(4, "ring"), documents=True)
    small, large = ring_blocks(SHAPE, replace(how, length=64)), ring_blocks(SHAPE, replace(how, length=2**20))
    assert large.of(2**18) - large.token * 2**18 == SCORES * SCORE_BYTES
    assert small.of(16) - small.token * 16 == 16 * 12 * 4 * SCORE_BYTES  # half of 2 x 8 x 8 pairs
    assert attention_ring_blocks.SCORES == SCORES
    fused = ring_blocks(SHAPE, replace(how, length=2**20, documents=False))
    assert fused.of(2**18) == large.token * 2**18


@pytest.mark.parametrize(
    ("device", "precision", "head_dim", "made"),
    [
        (H100, "bf16", 16, False), (H100, "bf16", 100, True), (H100, "bf16", 264, True),
        (H100, "fp32", 16, True), (replace(H100, capability=(7, 5)), "bf16", 16, True),
        (facts_of(Hardware().device("mi300x")), "bf16", 16, True),
        (DeviceFacts(), "fp32", 16, False), (DeviceFacts(), "bf16", 100, False),
    ],
)  # fmt: skip
def test_scores_are_made_where_the_device_has_no_kernel(device, precision, head_dim, made, monkeypatch):
    """By the plan, and by the ring itself on such a device."""
    settings = {
        "data": {"sources": [{"type": "stdlib"}], "sequence_length": 24},
        "train": {"max_steps": 1, "precision": precision},
        "parallel": {"world_size": 2, "context_parallel_size": 2, "context_parallel_form": "ring"},
    }
    plan = plan_for_shape(replace(SHAPE, head_dim=head_dim), settings, device)
    blocks = ring_blocks(plan.model, arithmetic(plan.config, plan.precision, plan.layout, plan.kernels))
    assert (blocks.fixed > 0.0) is made
    work = workload_of(plan)
    assert work is not None and (work.forms["attention"] == RING) is made
    monkeypatch.setattr(torch.version, "hip", None if device.capability else "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: device.capability)
    with FakeTensorMode():
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        q = torch.empty(1, 8, 12, head_dim, dtype=dtype, device=device.kind)
        assert attention_ring_fused.has_kernel(q) is not made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_take_no_more_than_is_counted(dtype):
    length, heads = 384, 4
    q, k, v, gradient = (torch.randn(1, length, heads, 8, dtype=dtype) for _ in range(4))
    sums, mean = (torch.zeros(1, heads, length) for _ in range(2))
    block, documents = Block(slice(0, length), slice(0, length), 0, 0), torch.zeros(1, length)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        backward_of_block(gradient, q, k, v, q, sums, mean, block, Rule(None, 0.3, None), documents)
    events = [each for each in found.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    scores = heads * length * length
    assert 0.75 * SCORE_BYTES < most / scores < 1.1 * SCORE_BYTES
