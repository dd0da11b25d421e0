"""How many floating-point operations training takes, and which share of a device's peak that is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llmkit.config.custom_model import AnyModel, CustomModel
from llmkit.config.parameters import EXPERTS
from llmkit.config.shape import ONLY_ADDED, ModelShape


def train_flops_per_token(shape: AnyModel, sequence_length: int, adapters: int = 0) -> int:
    """FLOPs of forward and backward for one token, without recomputation. adapters: parameters of adapters,
    where these alone are trained.

    6 N + 12 L d s: N parameters (of experts those that a token goes through; embeddings included, tied ones
    once; left out is what is only looked up and added: learned positions, embeddings of values and of pairs
    of tokens), L layers, d = heads x head_dim, s = sequence length (Chowdhery et al. 2022, PaLM, appendix B).
    This convention counts attention as if every position saw all of its row; most published figures use it.
    A registered model counts its own. Where adapters are trained there is no product for the gradient of a
    frozen weight: 4 N + 6 adapters + 12 L d s.
    """
    if isinstance(shape, CustomModel):
        return shape.flops_per_token * 2 // 3 + 6 * adapters if adapters else shape.flops_per_token
    attention_width = shape.num_attention_heads * shape.head_dim
    parameters = shape.num_active_parameters - shape.num_added_parameters
    products = 4 * parameters + 6 * adapters if adapters else 6 * parameters
    return products + 12 * shape.num_hidden_layers * attention_width * sequence_length


def causal_flops_per_token(
    shape: AnyModel, lengths: Sequence[int] | np.ndarray, adapters: int = 0
) -> float | None:
    """As `train_flops_per_token`, of what causal attention needs: 6 N + 12 d (keys that a position sees),
    summed over layers; N has the matrices of products alone, not an embedding that is only looked up. None
    for a registered model, which does not tell.

    lengths: tokens of each sequence, of which every position sees all before it, up to the layer's window: of
    the documents where these are masked from each other.
    """
    if isinstance(shape, CustomModel):
        return None
    matrices = sum(_matrices(shape).values())
    products = 4 * matrices + 6 * adapters if adapters else 6 * matrices
    sizes = np.asarray(lengths, dtype=np.float64)
    windows = [shape.window(layer) for layer in range(shape.num_hidden_layers)]
    seen = {window: _pairs(sizes, window) / sizes.sum() for window in set(windows)}
    width = shape.num_attention_heads * shape.head_dim
    return products + 12 * width * sum(seen[window] for window in windows)


def _matrices(shape: ModelShape) -> dict[str, float]:
    """Name of each matrix that is multiplied with -> its elements; tied weights are the head's. Of an expert,
    the share of the tokens that go through it."""
    share = shape.moe.num_experts_per_tok / max(1, shape.moe.num_experts)
    return {
        name: math.prod(size) * (share if EXPERTS in name else 1)
        for name, size in shape.parameters().items()
        if len(size) == 2
        and not name.endswith(ONLY_ADDED)
        and (name != "embedding.weight" or shape.tie_word_embeddings)
    }


def _pairs(lengths: np.ndarray, window: int | None) -> float:
    """How often a position sees one, itself included, in sequences of these lengths."""
    near = lengths if window is None else np.minimum(lengths, window)
    far = 0.0 if window is None else (lengths - near) * window
    return float((near * (near + 1) / 2 + far).sum())


def recomputed_flops_per_token(
    shape: AnyModel, sequence_length: int, how: str, every: int = 1, adapters: int = 0
) -> int:
    """FLOPs of the products that activation checkpointing computes again for a token, counted as
    `train_flops_per_token` does: of every n-th block the forward pass, but for the last product, unless a
    norm behind it needs the result. "selective" keeps what products and attention give. 0 for a registered
    model.
    """
    if isinstance(shape, CustomModel) or how != "full":
        return 0
    layers = range(0, shape.num_hidden_layers, every)
    blocks = tuple(f"blocks.{layer}." for layer in layers)
    left_out = ("down_proj.weight",) if shape.norm_placement == "pre" else ()
    products = sum(
        count
        for name, count in _matrices(shape).items()
        if name.startswith(blocks) and not name.endswith(left_out)
    )
    attention = 4 * len(layers) * shape.num_attention_heads * shape.head_dim * sequence_length
    return round(2 * products) + attention + 2 * adapters * len(layers) // shape.num_hidden_layers


def bits_per_byte(nats: float, text_bytes: int) -> float | None:
    """Bits a UTF-8 byte of text costs, where all its tokens together cost `nats`; None for no text."""
    return nats / math.log(2.0) / text_bytes if text_bytes else None


def perplexity(loss: float) -> float:
    """exp of a loss in nats a token; infinite where that is too large for a number."""
    return math.exp(loss) if loss < 700.0 else math.inf


def utilization(
    tokens_per_second: float, flops_per_token: float, peak: float | None, devices: int = 1
) -> float | None:
    """Model FLOPs utilization (MFU), 0 to 1, or None where the peak is unknown.

    tokens_per_second: of the whole job. peak: FLOP/s of one of its `devices`.
    """
    if peak is None or peak <= 0:
        return None
    return tokens_per_second * flops_per_token / (peak * devices)
