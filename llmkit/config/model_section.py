"""The settings of the model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from llmkit.config.section import Positive, Section

Mlp = Literal["swiglu", "geglu", "gelu", "relu2"]
Norm = Literal["rmsnorm", "layernorm"]
ResidualInit = Literal["scaled", "normal", "zero"]
PositionEmbedding = Literal["rope", "learned"]
NormPlacement = Literal["pre", "post", "both"]
QkNorm = bool | Literal["full"]
LayerType = Literal["full_attention", "sliding_attention"]
LayerTypes = Annotated[tuple[LayerType, ...], Field(strict=False, min_length=1)]
RopeType = Literal["default", "linear", "llama3", "yarn"]
Router = Literal["softmax", "sigmoid"]
AboveZero = Annotated[float, Field(gt=0.0)]


class ModelChoice(Section):
    """What every type of model has among its settings."""

    type: Literal["gpt"] = "gpt"
    """Which model: gpt, with the settings below, or one that a plugin registers, with settings of its own."""
    vocab_size: Positive | Literal["auto"] = "auto"
    """Tokens the model knows; auto = as many as the tokenizer has."""


class RopeScaling(Section):
    """How rotary frequencies are changed for contexts longer than those of the first training.

    Names and meanings as in transformers' `rope_scaling`."""

    rope_type: RopeType = "default"
    """default = not at all; linear = all divided by factor (Chen et al. 2023); llama3 = slow ones divided,
    those between slow and fast in part (Llama 3.1); yarn = the same with another ramp between them, and
    scores are scaled (Peng et al. 2023)."""
    factor: Annotated[float, Field(ge=1.0)] | None = None
    """How much longer the contexts become (all types but default)."""
    original_max_position_embeddings: Positive | None = None
    """Longest context of the first training (llama3, yarn)."""
    low_freq_factor: AboveZero | None = None
    """Frequencies that turn less often than this in the old context are divided in full (llama3)."""
    high_freq_factor: AboveZero | None = None
    """Frequencies that turn more often than this in the old context stay (llama3)."""
    beta_fast: AboveZero | None = None
    """Turns within the old context above which frequencies stay (yarn); default: 32."""
    beta_slow: AboveZero | None = None
    """Turns within the old context below which frequencies are divided in full (yarn); default: 1."""
    attention_factor: AboveZero | None = None
    """Rotated queries and keys are multiplied by this (yarn); default: 0.1 ln(factor) + 1, or by mscale."""
    mscale: AboveZero | None = None
    """With mscale_all_dim: attention_factor is (0.1 mscale ln(factor) + 1) / (the same with mscale_all_dim)
    (yarn, DeepSeek)."""
    mscale_all_dim: AboveZero | None = None
    """See mscale."""
    truncate: bool | None = None
    """The bounds between frequencies are rounded to whole channels (yarn); default: true."""


UNSCALED = RopeScaling()
"""Rotary frequencies as they are."""


class Moe(Section):
    """A mixture of experts in place of the MLP: a router sends each token to a few of many small MLPs.

    Names and meanings as in transformers' classes of mixtures (Mixtral, Qwen3-MoE, OLMoE)."""

    num_experts: Annotated[int, Field(ge=0)] = 0
    """MLPs that a layer has; 0 = no mixture: every layer has one MLP for all tokens."""
    num_experts_per_tok: Positive = 2
    """Experts that compute each token: those with the highest scores."""
    moe_intermediate_size: Positive | None = None
    """Width of an expert; default: model.intermediate_size."""
    shared_expert_intermediate_size: Positive | None = None
    """Width of an expert that computes every token, beside those that are chosen; default: there is none."""
    router: Router = "softmax"
    """How scores become weights of experts: softmax over all of them, or a sigmoid of each (DeepSeek-V3)."""
    norm_topk_prob: bool = True
    """The weights of the chosen experts are divided by their sum (Mixtral)."""
    router_aux_loss_coef: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight of the balance loss of each sequence: experts x (share of its tokens that an expert gets) x
    (mean probability of it), summed over experts, mean of the layers; num_experts_per_tok where all are
    alike (Fedus et al. 2022). Of each sequence, so that it is the same under every layout (DeepSeek-V2)."""
    router_z_loss_coef: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of the mean square of log(sum(exp(scores))), which keeps scores small (Zoph et al. 2022)."""
    bias_update_rate: Annotated[float, Field(ge=0.0)] | None = None
    """A bias of each expert is added to its score where experts are chosen, not to its weight, and after each
    step raised by this where the expert got fewer tokens of the global batch than the mean, lowered where it
    got more (Wang et al. 2024, DeepSeek-V3: 0.001); 0 = the biases stay as they are; default: there are
    none."""
    capacity_factor: AboveZero | None = None
    """In training an expert takes at most ceil(this x tokens of a sequence x num_experts_per_tok /
    num_experts) choices of each sequence, the first ones in the order of its tokens; the others add nothing
    (GShard, Switch). Of each sequence, so that it is the same under every layout. Default: nothing is
    dropped."""
    first_dense_layers: Annotated[int, Field(ge=0)] = 0
    """So many layers, the first ones, have one MLP for all tokens (DeepSeek)."""
    every_n_layers: Positive = 1
    """Of every so many layers, counted from the first, the last has experts, if it is none of those."""

    def is_in(self, layer: int) -> bool:
        """Whether the layer of this number, from 0 on, has experts."""
        behind = layer >= self.first_dense_layers and (layer + 1) % self.every_n_layers == 0
        return behind and self.num_experts > 0


DENSE = Moe()
"""No mixture of experts."""


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
    moe: Moe = DENSE
    """A mixture of experts in place of the MLP."""
    mlp: Mlp = "swiglu"
    """Gated SiLU (Llama), gated GELU with the tanh approximation (Gemma), the same without a gate (GPT-2), or
    relu(x)^2 (Primer)."""
    norm: Norm = "rmsnorm"
    """RMSNorm, or LayerNorm with bias."""
    norm_weight: bool = True
    """The norms have weights (and biases); without, they only normalise, those of queries and keys too."""
    norm_eps: Annotated[float, Field(gt=0.0, le=1e-2)] = 1e-5
    """Added to the variance in every norm."""
    norm_weight_offset: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Added to the norms' weights before they are applied; with 1 they are stored less one (Gemma)."""
    norm_placement: NormPlacement = "pre"
    """Norms on what enters attention and MLP (pre, GPT-2 and Llama), on what they add to the residual stream
    (post, OLMo 2), or both (Gemma 2)."""
    position_embedding: PositionEmbedding = "rope"
    """Rotary positions, or a learned vector a position (GPT-2)."""
    rope_theta: Annotated[float, Field(gt=0.0)] = 10000.0
    """Base of the rotary frequencies."""
    sliding_rope_theta: AboveZero | None = None
    """The same in layers with a sliding window, where rope_scaling does not act then (Gemma 3); default: they
    are as the others."""
    rope_scaling: RopeScaling = UNSCALED
    """How rotary frequencies are changed for contexts longer than those of the first training."""
    partial_rotary_factor: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the channels of each head that is rotated, the first ones (GPT-NeoX, Phi)."""
    max_position_embeddings: Positive | None = None
    """Longest context; default: data.sequence_length."""
    attention_bias: bool = False
    """Biases in the attention projections."""
    attention_output_bias: bool | None = None
    """A bias in the output projection of attention; default: as attention_bias (Qwen2: not, beside biases of
    queries, keys and values)."""
    mlp_bias: bool = False
    """Biases in the MLP projections."""
    qk_norm: QkNorm = False
    """RMSNorm over each head's query and key before the rotation (Qwen3); full = over those of all heads
    at once (OLMo 2)."""
    sliding_window: Positive | None = None
    """How many positions back a position sees, itself included; default: all."""
    layer_types: LayerTypes | None = None
    """Which layers have the sliding window, from the first layer on, repeated where they are fewer than the
    layers; default: all have it."""
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
