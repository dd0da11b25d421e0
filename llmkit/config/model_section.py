"""The settings of the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.section import Positive, Section

Mlp = Literal["swiglu", "gelu", "relu2"]
Norm = Literal["rmsnorm", "layernorm"]
ResidualInit = Literal["scaled", "normal", "zero"]
PositionEmbedding = Literal["rope", "learned"]


class ModelChoice(Section):
    """What every type of model has among its settings."""

    type: Literal["gpt"] = "gpt"
    """Which model: gpt, with the settings below, or one that a plugin registers, with settings of its own."""
    vocab_size: Positive | Literal["auto"] = "auto"
    """Tokens the model knows; auto = as many as the tokenizer has."""


class Model(ModelChoice):
    """Architecture of the GPT."""

    hidden_size: Positive = 768
    """Width of the residual stream."""
    num_hidden_layers: Positive = 12
    """Number of transformer blocks."""
    num_attention_heads: Positive = 12
    """Number of query heads."""
    num_key_value_heads: Positive | None = None
    """Number of key and value heads (grouped-query attention); default: as many as query heads."""
    head_dim: Positive | None = None
    """Width of a head; default: hidden_size / num_attention_heads."""
    intermediate_size: Positive | None = None
    """Width of the MLP; default: 4 x hidden_size; for swiglu 8/3 of it rounded up to 64."""
    mlp: Mlp = "swiglu"
    """Gated SiLU (Llama), GELU with the tanh approximation (GPT-2), or relu(x)^2 (Primer)."""
    norm: Norm = "rmsnorm"
    """RMSNorm, or LayerNorm with bias."""
    norm_weight: bool = True
    """The norms have weights (and biases); without, they only normalise, those of queries and keys too."""
    norm_eps: Annotated[float, Field(gt=0.0, le=1e-2)] = 1e-5
    """Added to the variance in every norm."""
    position_embedding: PositionEmbedding = "rope"
    """Rotary positions, or a learned vector a position (GPT-2)."""
    rope_theta: Annotated[float, Field(gt=0.0)] = 10000.0
    """Base of the rotary frequencies."""
    max_position_embeddings: Positive | None = None
    """Longest context; default: data.sequence_length."""
    attention_bias: bool = False
    """Biases in the attention projections."""
    mlp_bias: bool = False
    """Biases in the MLP projections."""
    qk_norm: bool = False
    """RMSNorm over each head's query and key before the rotation."""
    sliding_window: Positive | None = None
    """How many positions back a position sees, itself included; default: all."""
    attn_logit_softcapping: Annotated[float, Field(gt=0.0)] | None = None
    """Attention scores become c * tanh(score / c), c being this (Gemma 2); default: they stay as they are."""
    final_logit_softcapping: Annotated[float, Field(gt=0.0)] | None = None
    """Logits are bounded by this: c tanh(logit / c) (Gemma 2); default: not bounded."""
    tie_word_embeddings: bool = True
    """The output head shares the embedding's weights."""
    embedding_norm: bool = False
    """A norm, of the kind of the others, on what enters the first block (nanochat)."""
    key_shift: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """This share of each key, before norm and rotation, comes from the position before, so that one layer can
    find what followed an earlier occurrence of a token (modded-nanogpt): the pairs of channels that rotate
    slowest."""
    bigram_embedding: Positive | None = None
    """Rows of a table with a vector for each token and the one before it, found by a hash of both, which is
    added before each block, times a learned number a layer (modded-nanogpt); default: no such table."""
    value_embeddings: bool = False
    """Every second attention layer, the last one among them, adds to its values a vector of each token from a
    table of its own, times a gate for each head (modded-nanogpt, nanochat)."""
    residual_scalars: bool = False
    """Before each block the residual stream x becomes a x + b x0, with two learned numbers a layer, x0 being
    what entered the first block (modded-nanogpt, nanochat)."""
    embedding_multiplier: Annotated[float, Field(gt=0.0)] = 1.0
    """Embeddings of tokens are multiplied by this (Granite)."""
    attention_multiplier: Annotated[float, Field(gt=0.0)] | None = None
    """Attention scores are products of queries and keys times this (Granite); default: 1 / sqrt(head_dim)."""
    residual_multiplier: Annotated[float, Field(gt=0.0)] = 1.0
    """What attention and MLP add to the residual stream is multiplied by this (Granite)."""
    logits_scaling: Annotated[float, Field(gt=0.0)] = 1.0
    """Logits are divided by this (Granite)."""
    attention_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the attention probabilities."""
    hidden_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the embeddings and on what each block adds to the residual stream."""
    initializer_range: Annotated[float, Field(gt=0.0)] = 0.02
    """Standard deviation of the initial weights."""
    embedding_initializer_range: Annotated[float, Field(gt=0.0)] | None = None
    """The same of the embedding of tokens; default: initializer_range."""
    head_initializer_range: Annotated[float, Field(ge=0.0)] | None = None
    """The same of the output head, where it has its own weights; default: initializer_range."""
    residual_init: ResidualInit = "scaled"
    """Output projections of attention and MLP start smaller by sqrt(2 x layers), as in GPT-2; like the other
    matrices; or at zero."""
    vocab_pad_multiple: Positive = 128
    """The vocabulary is padded to a multiple of this for speed; the loss does not change."""
