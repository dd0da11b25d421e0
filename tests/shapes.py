"""Small models for tests: odd sizes, non-zero biases, nothing that divides evenly by chance."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from llmkit.config.shape import ModelShape
from llmkit.kernels.operators import Operators
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights

GPT2_STYLE = ModelShape(
    vocab_size=97, padded_vocab_size=128, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, head_dim=12, intermediate_size=100, max_position_embeddings=40, mlp="gelu",
    norm="layernorm", norm_eps=1e-5, position_embedding="learned", rope_theta=1e4, attention_bias=True,
    mlp_bias=True, qk_norm=False, sliding_window=None, tie_word_embeddings=True, attention_dropout=0.0,
    hidden_dropout=0.0, initializer_range=0.02, residual_init="scaled", vocab_pad_multiple=128,
)  # fmt: skip
LLAMA_STYLE = ModelShape(
    vocab_size=101, padded_vocab_size=104, hidden_size=48, num_hidden_layers=2, num_attention_heads=6,
    num_key_value_heads=2, head_dim=10, intermediate_size=72, max_position_embeddings=48, mlp="swiglu",
    norm="rmsnorm", norm_eps=1e-6, position_embedding="rope", rope_theta=5e3, attention_bias=False,
    mlp_bias=False, qk_norm=False, sliding_window=None, tie_word_embeddings=False, attention_dropout=0.0,
    hidden_dropout=0.0, initializer_range=0.02, residual_init="scaled", vocab_pad_multiple=8,
)  # fmt: skip

M = TypeVar("M", bound=nn.Module)


@torch.no_grad()
def randomise(model: M, seed: int = 0) -> M:
    """Every parameter random: biases and norms too, which initialisation would leave at 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(
            torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.dim() == 1) * 0.5
        )
    return model


@torch.no_grad()
def initial_model(shape: ModelShape, seed: int) -> GPT:
    """Our model with the weights that it would start with."""
    model = GPT(shape)
    weights = InitialWeights(model, seed)
    stored = dict(model.named_parameters())
    for name, parts in model.parameter_slices().items():
        stored[name].zero_()
        for part in parts:
            stored[name][part.start : part.stop] = weights.read(part.name, "master", part.box)
    return model


def random_model(shape: ModelShape, attention: str = "sdpa", seed: int = 0) -> GPT:
    """Our model with random values in every part, and zeros in the vocabulary's padding."""
    model = GPT(shape, Operators.of({"attention": attention}))
    weights = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parts in model.parameter_slices().items():
            weights[name].zero_()
            for part in parts:
                rows = weights[name][part.start : part.stop]
                rows.copy_(torch.randn(rows.shape, generator=generator) * 0.2 + (rows.dim() == 1) * 0.5)
    return model
