"""Gemma's classes of transformers: text alone. See `architectures.Architecture`."""

from __future__ import annotations

from typing import Any, ClassVar

from llmkit.config.shape import ModelShape
from llmkit.hf import names
from llmkit.hf.architectures import Architecture, Fields
from llmkit.hf.config_json import ConfigKeys
from llmkit.hf.rope import read_scaling, write_rope
from llmkit.hf.windows import FULL, SLIDING, layer_types, read_windows

ACTIVATION = ("gelu_pytorch_tanh", "gelu")
"""Of older files: transformers takes gelu for the tanh approximation here."""


class Gemma(Architecture):
    """Llama with a gated GELU, scaled embeddings, and weights of norms that are stored less one."""

    class_name = "GemmaForCausalLM"
    model_type = "gemma"
    divisible = False
    fields: ClassVar = {key: field for key, field in Architecture.fields.items() if key != "mlp_bias"} | {
        "head_dim": ("head_dim", 256),
        "max_position_embeddings": ("max_position_embeddings", 8192),
        "tie_word_embeddings": ("tie_word_embeddings", True),
    }
    fixed: ClassVar = {
        "hidden_act": ACTIVATION,
        "hidden_activation": ACTIVATION[:1],
        "use_bidirectional_attention": (False,),
    }
    settings: ClassVar = {**Architecture.settings, "mlp": "geglu", "norm_weight_offset": 1.0}

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds the scale of embeddings."""
        return super().read_more(keys, found) | {"embedding_multiplier": found["hidden_size"] ** 0.5}


class Gemma2(Gemma):
    """Gemma with norms before and behind, bounded scores and logits, and windows in every second layer."""

    class_name = "Gemma2ForCausalLM"
    model_type = "gemma2"
    divisible = True
    naming = names.GEMMA2
    fields: ClassVar = {
        **Gemma.fields,
        "final_logit_softcapping": ("final_logit_softcapping", 30.0),
        "attn_logit_softcapping": ("attn_logit_softcapping", 50.0),
    }
    nullable = frozenset({"final_logit_softcapping", "attn_logit_softcapping"})
    fixed: ClassVar = {
        "hidden_activation": ACTIVATION[:1],
        "hidden_act": ACTIVATION,
        "use_bidirectional_attention": (False,),
        "cache_implementation": ("hybrid",),
    }
    written = frozenset({"hidden_activation"})
    settings: ClassVar = {**Gemma.settings, "norm_placement": "both"}
    pattern: ClassVar[int] = 2
    """Every so many layers one has no window, where the types of layers are not listed."""

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds the scale of attention, and windows."""
        scalar = keys.take("query_pre_attn_scalar", 256)
        if isinstance(scalar, bool) or not isinstance(scalar, int | float) or not scalar > 0:
            keys.refuse("query_pre_attn_scalar", scalar, "a number above 0 is expected")
            scalar = 1
        pattern = keys.count("sliding_window_pattern", self.pattern)
        types, window = keys.take("layer_types"), keys.count_or_null("sliding_window", 4096)
        layers = found["num_hidden_layers"]
        if types is None:
            types = [SLIDING if (layer + 1) % pattern else FULL for layer in range(layers)]
        windows = read_windows(keys, types, window, layers)
        return super().read_more(keys, found | windows) | windows | {"attention_multiplier": scalar**-0.5}

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds the scale of attention, in whole numbers, and windows."""
        multiplier = (
            shape.head_dim**-0.5 if shape.attention_multiplier is None else shape.attention_multiplier
        )
        return {
            **super().write_more(shape),
            "query_pre_attn_scalar": round(multiplier**-2),
            "sliding_window": shape.sliding_window or shape.max_position_embeddings,
            "layer_types": layer_types(shape),
        }


class Gemma3(Gemma2):
    """Gemma 2 with norms of queries and keys, and rotary frequencies of their own in layers with a window."""

    class_name = "Gemma3ForCausalLM"
    model_type = "gemma3_text"
    fields: ClassVar = {
        **{key: field for key, field in Gemma2.fields.items() if key != "attn_logit_softcapping"},
        "max_position_embeddings": ("max_position_embeddings", 131072),
        "final_logit_softcapping": ("final_logit_softcapping", None),
    }
    fixed: ClassVar = {**Gemma2.fixed, "attn_logit_softcapping": (None,)}  # transformers does not apply it
    settings: ClassVar = {**Gemma2.settings, "qk_norm": True}
    pattern = 6

    def read_rope(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Two bases: in `rope_parameters` by the type of layers, in older files in keys of their own."""
        newer, older = keys.take("rope_parameters") or {}, keys.take("rope_scaling") or {}
        theta, local = keys.take("rope_theta", 1e6), keys.take("rope_local_base_freq", 1e4)
        if (
            not isinstance(newer, dict)
            or set(newer) - {FULL, SLIDING}
            or not all(map(_is_rope, newer.values()))
        ):
            keys.refuse("rope_parameters", newer, f"{FULL} and {SLIDING} are expected in it")
            return {}
        if not _is_rope(older):
            keys.refuse("rope_scaling", older, "settings of one type of rotary positions are expected")
            return {}
        full, sliding = dict(newer.get(FULL) or {}) | older, dict(newer.get(SLIDING) or {})
        theta, local = full.pop("rope_theta", theta), sliding.pop("rope_theta", local)
        name = f"rope_parameters.{SLIDING}"
        if read_scaling(keys, name, sliding, found["max_position_embeddings"]):
            keys.refuse(name, sliding, "frequencies of layers with a window are not scaled here")
        slides = found.get("sliding_window") is not None
        return {
            "rope_theta": theta,
            "sliding_rope_theta": local if slides else None,
            **read_scaling(keys, "rope_scaling", full, found["max_position_embeddings"]),
        }

    def write_rope(self, shape: ModelShape) -> dict[str, Any]:
        """The keys of transformers 4, which 5 reads too."""
        local = shape.rope_theta if shape.sliding_rope_theta is None else shape.sliding_rope_theta
        return {**write_rope(shape), "rope_local_base_freq": local}


def _is_rope(value: Any) -> bool:
    """Whether this can be the settings of rotary positions of one type of layers."""
    return value is None or isinstance(value, dict)
