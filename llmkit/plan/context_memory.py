"""What ranks that share rows hold of them in attention (context parallelism)."""

from __future__ import annotations

from llmkit.config.context import ulysses_heads
from llmkit.config.shape import ModelShape
from llmkit.parallel.layout import Layout
from llmkit.plan.arithmetic import Activations, Arithmetic
from llmkit.precision import BYTES

FP32 = BYTES["fp32"]
SCORES = 2**24
"""Scores that a ring makes at once: see `llmkit.kernels.attention_ring_blocks`."""
SCORE_BYTES = 6.0 * FP32
"""Of each of them at the largest moment, in the backward pass (counted on its operators)."""


def received_width(shape: ModelShape, layout: Layout) -> float:
    """Values a token of queries, keys and values that a rank is sent by an all-to-all of pieces for heads.

    Of whole rows of some heads, for each token of its own piece; all tensor-parallel ranks together.
    """
    tensor, size = layout.tensor_parallel_size, layout.context_parallel_size
    heads, kv_heads = shape.num_attention_heads // tensor, max(1, shape.num_key_value_heads // tensor)
    each, each_kv = ulysses_heads(heads, kv_heads, size)
    return float((each + 2 * each_kv) * size * tensor * shape.head_dim)


def makes_scores(shape: ModelShape, how: Arithmetic) -> bool:
    """Whether blocks of a ring have masks that no fused kernel takes, or the device has none, so that scores
    are in memory (`llmkit.kernels.attention_ring_blocks`)."""
    windows = any(shape.window(layer) is not None for layer in range(shape.num_hidden_layers))
    masked = how.documents or windows or shape.attn_logit_softcapping is not None
    return masked or not how.fused_ring


def ring_blocks(shape: ModelShape, how: Arithmetic) -> Activations:
    """What a ring holds in the backward pass of a layer, and lets go of behind it; nothing without one.

    Keys and values that it has and that come; of the gradients of both, its own, those that come and those
    that go, and of the queries, in fp32; scores of a block of queries and keys.
    """
    layout = how.layout
    if not layout.in_ring:
        return Activations(0.0)
    tensor = layout.tensor_parallel_size
    heads, grouped = shape.num_attention_heads / tensor, max(1.0, shape.num_key_value_heads / tensor)
    pair = 2.0 * grouped * shape.head_dim
    token = pair * (2.0 * how.bytes + 3.0 * FP32) + 2.0 * FP32 * heads * shape.head_dim
    if not makes_scores(shape, how):
        return Activations(token)
    keys = how.length / (2.0 * layout.context_parallel_size)
    return Activations(token, SCORES * SCORE_BYTES, SCORE_BYTES * heads * keys / 2.0)
