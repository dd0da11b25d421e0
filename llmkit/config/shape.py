"""The shape of a model: every choice resolved to a number, enough to build it and to read it back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from llmkit import __version__
from llmkit.config.model_rules import contradictions
from llmkit.config.model_section import (
    DENSE,
    UNSCALED,
    LayerType,
    Mlp,
    Model,
    Moe,
    Norm,
    NormPlacement,
    PositionEmbedding,
    QkNorm,
    ResidualInit,
    RopeScaling,
)
from llmkit.config.parameters import EXPERTS, FullTensor, full_tensors
from llmkit.config.renamed import with_new_names
from llmkit.errors import UserError

ONLY_ADDED = ("positions.weight", "value_embedding.weight", "bigram_embedding.weight")
"""Ends of the names of tables whose rows are looked up and added: no matrix product reads them."""
GATE_CHANNELS = 12
"""Channels of a layer's input that gates of its heads read (nanochat)."""


@dataclass(frozen=True)
class ModelShape:
    """What a model is built from; stored with each checkpoint. Names as in schema.Model.

    A field may be missing in an older checkpoint if it has a default here: that of schema.Model, which is
    what held before the field existed.
    """

    vocab_size: int
    """Tokens the model knows, without padding."""
    padded_vocab_size: int
    """Rows of the embedding; those from vocab_size on belong to no token."""
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    moe: Moe = DENSE
    mlp: Mlp = "swiglu"
    norm: Norm = "rmsnorm"
    norm_weight: bool = True
    norm_eps: float = 1e-5
    norm_weight_offset: float = 0.0
    norm_placement: NormPlacement = "pre"
    position_embedding: PositionEmbedding = "rope"
    rope_theta: float = 10000.0
    sliding_rope_theta: float | None = None
    rope_scaling: RopeScaling = UNSCALED
    partial_rotary_factor: float = 1.0
    attention_bias: bool = False
    attention_output_bias: bool | None = None
    mlp_bias: bool = False
    qk_norm: QkNorm = False
    sliding_window: int | None = None
    layer_types: tuple[LayerType, ...] | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None
    tie_word_embeddings: bool = True
    embedding_norm: bool = False
    key_shift: float = 0.0
    bigram_embedding: int | None = None
    value_embeddings: bool = False
    residual_scalars: bool = False
    embedding_multiplier: float = 1.0
    attention_multiplier: float | None = None
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    initializer_range: float = 0.02
    embedding_initializer_range: float | None = None
    head_initializer_range: float | None = None
    residual_init: ResidualInit = "scaled"
    vocab_pad_multiple: int = 128

    def __hash__(self) -> int:
        """Of sizes alone: sections hold lists."""
        return hash((self.vocab_size, self.hidden_size, self.num_hidden_layers, self.intermediate_size))

    def __post_init__(self) -> None:
        """Raises UserError for sizes that no model can have."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"model.num_attention_heads {self.num_attention_heads} is not divisible by "
                f"model.num_key_value_heads {self.num_key_value_heads}"
            )
        if self.position_embedding == "rope" and self.head_dim % 2:
            raise UserError(f"model.head_dim {self.head_dim} is odd; rope rotates pairs")
        if self.padded_vocab_size < self.vocab_size:
            raise UserError(
                f"padded_vocab_size {self.padded_vocab_size} is smaller than vocab_size {self.vocab_size}"
            )
        for found in contradictions(self):
            raise UserError(found.text(self))

    def has_value_embedding(self, layer: int) -> bool:
        """Whether this layer adds value embeddings: every second one does, counted from the last."""
        return self.value_embeddings and (self.num_hidden_layers - 1 - layer) % 2 == 0

    def has_experts(self, layer: int) -> bool:
        """Whether this layer has a mixture of experts in place of its MLP."""
        return self.moe.is_in(layer)

    @property
    def expert_layers(self) -> int:
        """Layers with a mixture of experts."""
        return sum(map(self.has_experts, range(self.num_hidden_layers)))

    @property
    def expert_width(self) -> int:
        """Width of an expert."""
        return self.moe.moe_intermediate_size or self.intermediate_size

    def active_width(self, layer: int) -> int:
        """Width of all MLPs together that a token goes through in a layer."""
        if not self.has_experts(layer):
            return self.intermediate_size
        shared = self.moe.shared_expert_intermediate_size or 0
        return self.moe.num_experts_per_tok * self.expert_width + shared

    @property
    def mean_active_width(self) -> float:
        """The same on average over the layers."""
        return sum(map(self.active_width, range(self.num_hidden_layers))) / self.num_hidden_layers

    def window(self, layer: int) -> int | None:
        """How many positions back a layer sees, itself included; None: all."""
        types = self.layer_types
        return None if types and types[layer % len(types)] == "full_attention" else self.sliding_window

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated, the first ones."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def tables_hold_scale(self) -> bool:
        """Whether the scale of attention is part of the rotary tables, which then act on all channels."""
        return self.position_embedding == "rope" and self.rotary_dim == self.head_dim

    @property
    def output_bias(self) -> bool:
        """Whether the output projection of attention has a bias."""
        return self.attention_bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def residual_scalar_names(self) -> tuple[str, ...]:
        """Learned numbers of a block, by which it multiplies the stream, its first input, and bigrams."""
        names = ("stream", "embedding") if self.residual_scalars else ()
        return names if self.bigram_embedding is None else (*names, "bigram")

    @property
    def gate_channels(self) -> int:
        """Channels of a layer's input that gates of its heads read."""
        return min(GATE_CHANNELS, self.hidden_size)

    @property
    def shifted_key_pairs(self) -> int:
        """Pairs of channels of each key that come from the position before: the last ones of both halves."""
        most = self.head_dim // 2
        return min(most, max(1, round(self.key_shift * self.head_dim / 2))) if self.key_shift else 0

    @property
    def attention_scale(self) -> float:
        """Attention scores as multiples of those that are divided by sqrt(head_dim)."""
        return 1.0 if self.attention_multiplier is None else self.attention_multiplier * self.head_dim**0.5

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every full tensor: see `llmkit.config.parameters.named_parameters`."""
        return {tensor.name: tensor.shape for tensor in self.tensors}

    @cached_property
    def tensors(self) -> tuple[FullTensor, ...]:
        """The same, with what decides how they are updated."""
        return full_tensors(self)

    @cached_property
    def num_parameters(self) -> int:
        """Weights in all: vocabulary without padding, tied ones once, learned positions included."""
        return sum(math.prod(size) for size in self.parameters().values())

    @cached_property
    def num_active_parameters(self) -> int:
        """The same without those of experts that a token does not go through."""
        sizes = self.parameters().items()
        experts = sum(math.prod(size) for name, size in sizes if EXPERTS in name)
        if not experts:
            return self.num_parameters
        share = self.moe.num_experts_per_tok / self.moe.num_experts
        return self.num_parameters - experts + round(experts * share)

    @property
    def num_added_parameters(self) -> int:
        """Weights of the tables in `ONLY_ADDED`: learned positions, value embeddings, bigrams."""
        sizes = self.parameters().items()
        return sum(math.prod(size) for name, size in sizes if name.endswith(ONLY_ADDED))

    @property
    def num_block_parameters(self) -> int:
        """Weights of all transformer blocks."""
        return sum(math.prod(size) for name, size in self.parameters().items() if name.startswith("blocks."))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values that JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        types = None if self.layer_types is None else list(self.layer_types)
        sections = {"rope_scaling": self.rope_scaling.model_dump(), "moe": self.moe.model_dump()}
        return values | sections | {"layer_types": types}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str = "the stored model shape") -> ModelShape:
        """The shape that `to_dict` wrote, maybe in an older version.

        origin: names the checkpoint and its version. Raises UserError for unknown, missing or wrong values.
        """
        values, fields = with_new_names({"model": values})["model"], dataclasses.fields(cls)
        required = {field.name for field in fields if field.default is dataclasses.MISSING}
        for problem, names in (
            (
                f"settings that llmkit {__version__} does not know",
                values.keys() - {field.name for field in fields},
            ),
            ("no value for", required - values.keys()),
        ):
            if names:
                listed = ", ".join(sorted(map(repr, names)))
                raise UserError(f"{origin}: its model has {problem}: {listed}; use the version that wrote it")
        for name in required:  # in the settings some of them may be left open
            if not isinstance(values[name], int) or isinstance(values[name], bool):
                raise UserError(f"{origin}: its model has {name} = {values[name]!r}, which is not valid")
        try:
            model = Model.model_validate({name: values[name] for name in values.keys() & Model.model_fields})
        except ValidationError as faults:
            fault = faults.errors()[0]
            name = str(fault["loc"][0])
            raise UserError(
                f"{origin}: its model has {name} = {values[name]!r:.100}, which is not valid: {fault['msg']}"
            ) from None
        found = {name: getattr(model, name) for name in model.model_fields_set}
        return cls(**{**values, **found})
