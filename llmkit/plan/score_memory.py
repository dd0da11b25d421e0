"""What forms of attention keep of the scores of queries, and of masks; counted as `activations` is."""

from __future__ import annotations

from llmkit.config.shape import ModelShape
from llmkit.plan.arithmetic import Arithmetic, Recompute
from llmkit.precision import BYTES

FP32 = BYTES["fp32"]
SMALLEST_TILE, TILES = 64, 8
"""Of attention in blocks: see `llmkit.kernels.attention_blocks`."""
LONGEST_MASK = 512
"""Keys up to which a mask is made at once: see `llmkit.kernels.attention`."""


def score_bytes(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """Returns the bytes a token that a block keeps of scores, of all heads.

    Attention in blocks keeps their products where products are kept, and compiled all scores, which the
    compiler does not compute again; where PyTorch makes the backward pass, the attention weights are kept.
    """
    form = _form(shape, how)
    if form not in ("blocks", "matmul") or recompute == "full" or how.layout.in_ring:
        return 0.0
    each = float(how.bytes)
    if recompute == "none" and form == "blocks":
        each = FP32 if how.compiled else 0.0
    elif recompute == "none":
        each = FP32 + (how.bytes if how.compiled or how.bytes < FP32 else 0)
    return each * shape.num_attention_heads * _mean_keys(shape, how)


def mask_bytes(shape: ModelShape, how: Arithmetic, recompute: Recompute) -> float:
    """Returns the bytes a token that fused attention keeps of a mask of documents, which all heads share.

    Of ranks that exchange pieces of rows for heads each has the mask of whole rows.
    """
    if not how.documents or recompute != "none" or _form(shape, how) != "sdpa" or how.layout.in_ring:
        return 0.0
    each = how.bytes * (how.length if how.length <= LONGEST_MASK else _mean_keys(shape, how))
    return each * how.layout.context_parallel_size


def mean_keys(length: int, window: int | None) -> float:
    """Returns the keys of which the scores of a query are computed in blocks, on average over a row."""
    size = max(SMALLEST_TILE, -(-length // (TILES * SMALLEST_TILE)) * SMALLEST_TILE)
    pairs = 0
    for first in range(0, length, size):
        last = min(first + size, length)
        pairs += (last - first) * (last - (0 if window is None else max(0, first - window + 1)))
    return pairs / max(1, length)


def _mean_keys(shape: ModelShape, how: Arithmetic) -> float:
    """The same on average over the layers, each with its window."""
    windows = [shape.window(layer) for layer in range(shape.num_hidden_layers)]
    found = {window: mean_keys(how.length, window) for window in set(windows)}
    return sum(found[window] for window in windows) / len(windows)


def _form(shape: ModelShape, how: Arithmetic) -> str:
    """The form that computes: fused attention leaves soft caps to blocks, and these dropout to products."""
    form = how.forms.get("attention", "sdpa")
    if form == "sdpa" and shape.attn_logit_softcapping is not None:
        form = "blocks"
    return "matmul" if form == "blocks" and shape.attention_dropout > 0.0 else form
