"""How long a training step should take at the rates that a GPU reaches: a prediction to hold figures against.

What it rests on. Measured on one H100 SXM: a bf16 product of 8192^3 and a copy. Read from the charts of the
FlashAttention-3 paper: the rates of attention. Assumed: that a product loses K / (K + 120) of its rate, that
it runs in waves of one 128 x 256 tile a multiprocessor, and how many bytes the pointwise operators move. The
parts ceilings, attention and kernels measure all three. H200 and A100 are scaled by their data sheets.
"""

from __future__ import annotations

import math
import re
import sys
from dataclasses import dataclass

import torch

from llmkit.config.shape import ModelShape

REACHED = 0.87
"""Share of this bound that tuned runs of a single node reach (published rows of 124M to 3B models)."""
OPTIMIZER_BYTES = 38
"""Per parameter of an update in bf16: masters, moments and gradients read and written, weights written."""
LOSS_BYTES = 4
"""Per logit in bf16, beside the products: read, and overwritten by its gradient."""
WORKSPACE = 1.5e9
"""Bytes that libraries and the allocator take beside the tensors."""
# fmt: off
ATTENTION = {64: ((450, 420), (400, 600)), 128: ((610, 400), (510, 650))}
"""Head dim -> forward and backward: TFLOP/s on an H100 for long rows, and the length at which it is half."""
TARGETS = {"124m": 0.44, "355m": 0.50, "1558m": 0.54, "llama-1b": 0.58, "llama-3b": 0.62}
"""MFU, full convention, that llmkit is to reach in bf16 on one H100."""
PREDICTED = (
    ("124m", 1024, 32_768), ("355m", 1024, 32_768), ("1558m", 1024, 16_384), ("llama-1b", 2048, 16_384),
    ("llama-1b", 8192, 16_384), ("llama-3b", 4096, 8192),
)
"""Shape, length of a row and tokens of a micro-batch of the rows that `python -m` prints."""
STEP_TOKENS = 524_288
# fmt: on


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches: bf16 products in FLOP/s, copies in bytes/s (read and written), multiprocessors."""

    products: float
    bandwidth: float
    multiprocessors: int


H100 = Rates(798e12, 3.0e12, 132)
KNOWN = (
    (r"H100( 80GB HBM3)?$", H100),
    (r"H200", Rates(798e12, 4.3e12, 132)),
    (r"A100.*80GB", Rates(252e12, 1.75e12, 108)),
    (r"A100", Rates(252e12, 1.4e12, 108)),
)


def rates_of(name: str) -> Rates | None:
    """The rates of a GPU by the name PyTorch gives it; None where nothing is predicted for it."""
    plain = name.removeprefix("NVIDIA ").strip()
    return next((rates for pattern, rates in KNOWN if re.match(pattern, plain)), None)


def product_seconds(m: int, n: int, k: int, rates: Rates) -> float:
    """Seconds of an (m, k) x (k, n) product in bf16: whole waves of tiles, short K, memory."""
    tiles = math.ceil(m / 128) * math.ceil(n / 256)
    waves = math.ceil(tiles / rates.multiprocessors)
    fill = tiles / (waves * rates.multiprocessors) if waves < 20 else 1.0
    compute = 2 * m * n * k / (rates.products * k / (k + 120) * max(fill, 0.35))
    return max(compute, 2 * (m * k + k * n + m * n) / rates.bandwidth)


def linear_seconds(tokens: int, n: int, k: int, rates: Rates) -> float:
    """Seconds of a linear layer from k to n values, forward and backward."""
    shapes = ((tokens, n, k), (tokens, k, n), (n, k, tokens))
    return sum(product_seconds(*each, rates) for each in shapes)


def attention_seconds(
    tokens: int, heads: int, head_dim: int, length: int, rates: Rates
) -> tuple[float, float]:
    """Seconds of causal attention over rows of `length`, forward and backward, in the best kernel."""
    flops = 2 * length * heads * head_dim * tokens  # of the half that is not masked
    forward, backward = ATTENTION[64 if head_dim <= 64 else 128]
    scale = rates.products / H100.products * 1e12 * length
    return (
        flops / (forward[0] * scale / (length + forward[1])),
        2.5 * flops / (backward[0] * scale / (length + backward[1])),
    )


def step_seconds(shape: ModelShape, length: int, micro_tokens: int, step_tokens: int, rates: Rates) -> float:
    """Seconds of a step whose pointwise operators are fused, with nothing computed again."""
    width, layers = shape.hidden_size, shape.num_hidden_layers
    sizes = matrices(shape)
    body = sum(linear_seconds(micro_tokens, n, k, rates) for n, k in sizes)
    attention = sum(attention_seconds(micro_tokens, shape.num_attention_heads, shape.head_dim, length, rates))
    pointwise = pointwise_bytes(shape) * micro_tokens / rates.bandwidth
    head = linear_seconds(micro_tokens, shape.padded_vocab_size, width, rates)
    loss = (LOSS_BYTES * shape.padded_vocab_size + 8 * width) * micro_tokens / rates.bandwidth
    micro_batch = layers * (body + attention + pointwise) + head + loss
    update = OPTIMIZER_BYTES * shape.num_parameters / rates.bandwidth
    return micro_batch * step_tokens / micro_tokens + update


def matrices(shape: ModelShape) -> list[tuple[int, int]]:
    """(outputs, inputs) of the matrices of a block: q, k and v; output; into the MLP; out of it."""
    width, inner = shape.hidden_size, shape.intermediate_size
    query, key = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    into = 2 * inner if shape.mlp == "swiglu" else inner
    return [(query + 2 * key, width), (width, query), (into, width), (width, inner)]


def pointwise_bytes(shape: ModelShape) -> float:
    """Bytes a token and layer that fused norms, activations, rotations and sums move, both directions."""
    width, inner = shape.hidden_size, shape.intermediate_size
    share = shape.num_key_value_heads / shape.num_attention_heads
    if shape.mlp == "gelu":
        return 2 * 45 * width
    return 2 * (16 * width + 4 * (1 + share) * width + 8.5 * inner)


def kept_bytes(shape: ModelShape) -> float:
    """Bytes a token and layer that the backward pass keeps, pointwise operators fused."""
    width, inner = shape.hidden_size, shape.intermediate_size
    share = shape.num_key_value_heads / shape.num_attention_heads
    if shape.mlp == "gelu":
        return 2 * (8 * width + 2 * inner)
    return 2 * (5 * width + 1.5 * (1 + 2 * share) * width + 3 * inner)


def memory(shape: ModelShape, micro_tokens: int) -> float:
    """Bytes of a step in bf16: masters, moments, gradients and weights, what is kept, a chunk of logits."""
    kept = shape.num_hidden_layers * kept_bytes(shape) * micro_tokens
    logits = 2 * min(4096, micro_tokens) * shape.padded_vocab_size
    return 18 * shape.num_parameters + kept + logits + WORKSPACE


def causal_flops(shape: ModelShape, length: int) -> float:
    """FLOPs of a token, counting only the half of attention that is not masked, and only matrices."""
    blocks = shape.num_hidden_layers * sum(n * k for n, k in matrices(shape))
    attention = 6 * shape.num_hidden_layers * shape.num_attention_heads * shape.head_dim * length
    return 6 * (blocks + shape.padded_vocab_size * shape.hidden_size) + attention


def table(name: str) -> str:
    """What is predicted for a GPU of that name, as Markdown; nothing of it is measured."""
    from benchmarks.workloads import make_workload
    from llmkit.monitor.flops import train_flops_per_token
    from llmkit.monitor.peaks import published_peak

    rates, peak = rates_of(name), published_peak(name)
    if rates is None or peak is None:
        raise SystemExit(f"nothing is predicted for {name!r}: no rates of it are known")
    lines = ["| shape | row | tokens/s: bound | predicted | MFU: bound | predicted | target on one H100 |"]
    lines += ["| --- | --: | --: | --: | --: | --: | --: |"]
    for shape_name, length, micro_tokens in PREDICTED:
        shape = make_workload(shape_name, torch.device("cpu")).shape
        rate = STEP_TOKENS / step_seconds(shape, length, micro_tokens, STEP_TOKENS, rates)
        share = rate * train_flops_per_token(shape, length) / peak
        lines.append(
            f"| {shape_name} | {length} | {rate:,.0f} | {REACHED * rate:,.0f} | {share:.1%} | "
            f"{REACHED * share:.1%} | {TARGETS[shape_name]:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(" ".join(sys.argv[1:]) or "NVIDIA H100 80GB HBM3"))
