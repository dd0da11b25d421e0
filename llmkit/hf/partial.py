"""Classes of transformers that rotate a part of each head's channels. See `architectures.Architecture`."""

from __future__ import annotations

from typing import Any, ClassVar

from llmkit.config.shape import ModelShape
from llmkit.hf import names
from llmkit.hf.architectures import Architecture, Fields
from llmkit.hf.config_json import ConfigKeys
from llmkit.hf.rope import read_rope, write_rope


class StableLm(Architecture):
    """Llama with LayerNorm, and biases on queries, keys and values alone."""

    class_name = "StableLmForCausalLM"
    model_type = "stablelm"
    divisible = True
    fields: ClassVar = {
        "num_key_value_heads": ("num_key_value_heads", 32),
        "max_position_embeddings": ("max_position_embeddings", 4096),
        "layer_norm_eps": ("norm_eps", 1e-5),
        "initializer_range": ("initializer_range", 0.02),
        "tie_word_embeddings": ("tie_word_embeddings", False),
        "use_qkv_bias": ("attention_bias", False),
        "attention_dropout": ("attention_dropout", 0.0),
    }
    fixed: ClassVar = {
        "hidden_act": ("silu", "swish"),
        "qk_layernorm": (False,),
        "use_parallel_residual": (False,),
        "hidden_dropout": (0.0,),  # here behind the MLP alone
    }
    settings: ClassVar = {
        "mlp": "swiglu", "norm": "layernorm", "position_embedding": "rope", "attention_output_bias": False,
    }  # fmt: skip
    share: ClassVar[float] = 0.25
    """Of a head's channels, which are rotated where config.json does not say how many."""

    def read_rope(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds the share of channels that are rotated."""
        return read_rope(keys, found["max_position_embeddings"], self.share)

    def write_rope(self, shape: ModelShape) -> dict[str, Any]:
        """The same."""
        return {**write_rope(shape), "partial_rotary_factor": shape.partial_rotary_factor}


class Phi3(StableLm):
    """Phi-3 and Phi-4-mini: Llama with fused matrices, and maybe a window."""

    class_name = "Phi3ForCausalLM"
    model_type = "phi3"
    divisible = False
    naming = names.PHI3
    fields: ClassVar = {
        key: field for key, field in Architecture.fields.items() if key not in ("attention_bias", "mlp_bias")
    } | {
        "max_position_embeddings": ("max_position_embeddings", 4096),
        "rms_norm_eps": ("norm_eps", 1e-5),
    }  # fmt: skip
    fixed: ClassVar = {
        "hidden_act": ("silu", "swish"), "resid_pdrop": (0.0,), "embd_pdrop": (0.0,),
        "attention_bias": (False,), "lm_head_bias": (False,),
    }  # fmt: skip
    settings: ClassVar = Architecture.settings
    share = 1.0

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds the window. Of unscaled positions the original context says nothing."""
        keys.take("original_max_position_embeddings")
        return super().read_more(keys, found) | {"sliding_window": keys.count_or_null("sliding_window", None)}

    def read_rope(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Without scaling: transformers takes every kind of it for longrope here."""
        read = super().read_rope(keys, found)
        if scaling := read.pop("rope_scaling", None):
            keys.refuse("rope_scaling", scaling, "this class has positions that are not scaled, or longrope")
        return read

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds the window, and what llama.cpp's converter reads."""
        context = shape.max_position_embeddings
        return {
            **super().write_more(shape),
            "sliding_window": shape.sliding_window,
            "original_max_position_embeddings": context,
        }
