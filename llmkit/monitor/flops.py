"""How many floating-point operations training takes, and which share of a device's peak that is."""

from __future__ import annotations

import math

from llmkit.config.custom_model import AnyModel, CustomModel


def train_flops_per_token(shape: AnyModel, sequence_length: int, adapters: int = 0) -> int:
    """FLOPs of forward and backward for one token, without recomputation. adapters: parameters of adapters,
    where these alone are trained.

    6 N + 12 L d s: N parameters (embeddings included, tied ones once; left out is what is only looked up and
    added: learned positions, embeddings of values and of pairs of tokens), L layers, d = heads x head_dim,
    s = sequence length (Chowdhery et al. 2022, PaLM, appendix B). This convention counts attention as if
    every position saw all of its row; most published figures use it. A registered model counts its own. Where
    adapters are trained there is no product for the gradient of a frozen weight: 4 N + 6 adapters + 12 L d s.
    """
    if isinstance(shape, CustomModel):
        return shape.flops_per_token * 2 // 3 + 6 * adapters if adapters else shape.flops_per_token
    attention_width = shape.num_attention_heads * shape.head_dim
    parameters = shape.num_parameters - shape.num_added_parameters
    products = 4 * parameters + 6 * adapters if adapters else 6 * parameters
    return products + 12 * shape.num_hidden_layers * attention_width * sequence_length


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
