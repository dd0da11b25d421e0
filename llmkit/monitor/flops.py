"""How many floating-point operations training takes, and which share of a device's peak that is."""

from __future__ import annotations

import math
from typing import Protocol

from llmkit.config.custom_model import CustomModel


class ModelShape(Protocol):
    """What the FLOP count needs to know of a model."""

    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def position_embedding(self) -> str:
        """`learned` where a table of positions is among the parameters."""

    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def num_parameters(self) -> int:
        """All parameters: vocabulary unpadded, tied embeddings once, learned positions included."""


def train_flops_per_token(shape: ModelShape | CustomModel, sequence_length: int, causal: bool = False) -> int:
    """FLOPs of forward and backward for one token, without recomputation.

    6 N + 12 L d s: N parameters (embeddings included, tied ones once, learned positions left out,
    as they are only added), L layers, d = heads x head_dim, s = sequence length (Chowdhery et al.
    2022, PaLM, appendix B). This convention counts attention as if every position saw the whole
    row; most published figures use it. `causal` counts only what a causal mask leaves: 6 L d s.
    A registered model counts its own.
    """
    if isinstance(shape, CustomModel):
        return shape.flops_per_token
    parameters = shape.num_parameters
    if shape.position_embedding == "learned":
        parameters -= shape.max_position_embeddings * shape.hidden_size
    attention_width = shape.num_attention_heads * shape.head_dim
    per_layer = (6 if causal else 12) * attention_width * sequence_length
    return 6 * parameters + shape.num_hidden_layers * per_layer


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
