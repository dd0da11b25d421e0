"""The classes of transformers that are settings of the one GPT: their config.json, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from llmkit.config.shape import ModelShape
from llmkit.hf import names
from llmkit.hf.config_json import ConfigKeys
from llmkit.hf.names import Naming
from llmkit.hf.rope import THETA, read_rope, write_rope
from llmkit.hf.windows import FULL, SLIDING, layer_types, read_windows

Fields = dict[str, Any]
MOST_LAYERS = 10_000
"""More layers than this are not listed one by one."""
WHOLE = frozenset({"num_key_value_heads", "head_dim", "max_position_embeddings", "intermediate_size"})
"""Fields that are whole numbers, or left open."""


class Architecture:
    """A class of transformers, by Llama's settings; subclasses say what differs.

    class_name, model_type: as in config.json. naming: of its tensors. sizes: keys that must be there -> our
    fields. fields: other keys -> our field and the value that transformers takes where the key is absent.
    fixed: keys -> the values with which transformers computes what our model does; the first of them is
    transformers' own where the key is absent, and is written. settings: our fields that it always has.
    """

    class_name: ClassVar[str]
    model_type: ClassVar[str]
    naming: ClassVar[Naming] = names.LLAMA
    sizes: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
    }
    fields: ClassVar[Mapping[str, tuple[str, Any]]] = {
        "num_key_value_heads": ("num_key_value_heads", None),
        "head_dim": ("head_dim", None),
        "max_position_embeddings": ("max_position_embeddings", 2048),
        "rms_norm_eps": ("norm_eps", 1e-6),
        "initializer_range": ("initializer_range", 0.02),
        "tie_word_embeddings": ("tie_word_embeddings", False),
        "attention_bias": ("attention_bias", False),
        "mlp_bias": ("mlp_bias", False),
        "attention_dropout": ("attention_dropout", 0.0),
    }
    fixed: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "hidden_act": ("silu", "swish"),
        "rope_interleaved": (False,),
    }
    written: ClassVar[frozenset[str]] = frozenset({"hidden_act"})
    """Those of `fixed` that are written; the others are keys that few files have."""
    nullable: ClassVar[frozenset[str]] = frozenset()
    """Those of `fields` of which null is a value of its own."""
    default_theta: ClassVar[float] = THETA
    """Base of the rotary frequencies where the file has none."""
    divisible: ClassVar[bool] = False
    """Whether transformers wants the width to be divisible by the heads, whatever their width is."""
    settings: ClassVar[Fields] = {"mlp": "swiglu", "norm": "rmsnorm", "position_embedding": "rope"}

    def read(self, keys: ConfigKeys) -> Fields:
        """The fields of ModelShape that a config.json says; notes in `keys` what cannot be."""
        found: Fields = dict(self.settings)
        for key, field in self.sizes.items():
            found[field] = keys.count(key)
        if found["num_hidden_layers"] > MOST_LAYERS:
            keys.refuse("the number of layers", found["num_hidden_layers"], f"at most {MOST_LAYERS} are read")
            found["num_hidden_layers"] = 1
        for key, (field, default) in self.fields.items():
            value = keys.take(key, default)
            found[field] = default if value is None and key not in self.nullable else value
            if field in WHOLE and found[field] is not None:
                found[field] = keys.whole(key, found[field])
        for key, values in self.fixed.items():
            keys.expect(key, *values)
        heads, width = found["num_attention_heads"], found["hidden_size"]
        if found.get("num_key_value_heads") is None:
            found["num_key_value_heads"] = heads
        if found.get("head_dim") is None:
            if width % heads:
                keys.refuse("hidden_size", width, f"it cannot be shared out to {heads} heads")
            found["head_dim"] = width // heads
        return found | self.read_more(keys, found)

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """What depends on several keys. found: what was read before."""
        return self.read_rope(keys, found)

    def read_rope(self, keys: ConfigKeys, found: Fields) -> Fields:
        """The settings of rotary positions."""
        return read_rope(keys, found["max_position_embeddings"], default_theta=self.default_theta)

    def write(self, shape: ModelShape) -> dict[str, Any]:
        """The config.json of a model, which may say less than the shape: see `choose.differences`."""
        written = {key: getattr(shape, field) for key, field in self.sizes.items()}
        written |= {key: getattr(shape, field) for key, (field, _) in self.fields.items()}
        written |= {key: values[0] for key, values in self.fixed.items() if key in self.written}
        return {
            "architectures": [self.class_name],
            "model_type": self.model_type,
            **written,
            **self.write_more(shape),
        }

    def filled(self, shape: ModelShape) -> ModelShape:
        """With the tensors that this class always has and ours may lack: `filling` computes the same."""
        return replace(shape, norm_weight=True)

    def takes_tokenizer(self, spec: Mapping[str, Any]) -> bool:
        """Whether AutoTokenizer reads a tokenizer.json as it is where config.json is of this class."""
        return True

    def refused_sizes(self, shape: ModelShape) -> tuple[str, ...]:
        """Sizes that transformers refuses for this class, though config.json can say them."""
        odd = self.divisible and shape.hidden_size % shape.num_attention_heads
        return ("hidden_size", "num_attention_heads") if odd else ()

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """What depends on several fields."""
        return self.write_rope(shape)

    def write_rope(self, shape: ModelShape) -> dict[str, Any]:
        """The keys of rotary positions."""
        return write_rope(shape)


class Llama(Architecture):
    """Llama and SmolLM 2."""

    class_name = "LlamaForCausalLM"
    model_type = "llama"
    divisible = True

    def filled(self, shape: ModelShape) -> ModelShape:
        """With a bias of the output projection where queries, keys and values have one."""
        return replace(super().filled(shape), attention_output_bias=None if shape.attention_bias else False)


class Mistral(Architecture):
    """Llama without biases, and with a window."""

    class_name = "MistralForCausalLM"
    model_type = "mistral"
    fields: ClassVar = {
        key: field
        for key, field in Architecture.fields.items()
        if key not in ("attention_bias", "mlp_bias", "max_position_embeddings", "num_key_value_heads")
    } | {
        "num_key_value_heads": ("num_key_value_heads", 8),
        "max_position_embeddings": ("max_position_embeddings", 131072),
    }
    fixed: ClassVar = {"hidden_act": ("silu", "swish")}
    default_window: ClassVar[int | None] = 4096

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds the window, which is there unless it is null."""
        window = keys.count_or_null("sliding_window", self.default_window)
        return super().read_more(keys, found) | {"sliding_window": window}

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds the window."""
        return {**super().write_more(shape), "sliding_window": shape.sliding_window}


class Qwen3(Architecture):
    """Llama with a norm of each head's queries and keys, and maybe windows."""

    class_name = "Qwen3ForCausalLM"
    model_type = "qwen3"
    fields: ClassVar = {key: field for key, field in Architecture.fields.items() if key != "mlp_bias"} | {
        "head_dim": ("head_dim", 128),
        "max_position_embeddings": ("max_position_embeddings", 32768),
    }
    fixed: ClassVar = {"hidden_act": ("silu", "swish")}
    settings: ClassVar = {**Architecture.settings, "qk_norm": True}

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds windows, which by default the layers from `max_window_layers` on have."""
        wanted = keys.take("use_sliding_window", False)
        window = keys.count_or_null("sliding_window", 4096)
        first, types = keys.count("max_window_layers", 28, least=0), keys.take("layer_types")
        layers, window = found["num_hidden_layers"], window if wanted else None
        if types is None:
            types = [FULL if window is None or layer < first else SLIDING for layer in range(layers)]
        return super().read_more(keys, found) | read_windows(keys, types, window, layers)

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds windows."""
        types = layer_types(shape)
        return {
            **super().write_more(shape),
            "use_sliding_window": SLIDING in types,
            "sliding_window": shape.sliding_window,
            "max_window_layers": types.index(SLIDING) if SLIDING in types else shape.num_hidden_layers,
            **({"layer_types": types} if SLIDING in types else {}),
        }


QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
"""How Qwen 2's tokenizer cuts text before merges (transformers, tokenization_qwen2.py)."""


class Qwen2(Qwen3):
    """Llama with biases on queries, keys and values alone, and maybe windows."""

    class_name = "Qwen2ForCausalLM"
    model_type = "qwen2"
    fields: ClassVar = {key: field for key, field in Qwen3.fields.items() if key != "attention_bias"} | {
        "head_dim": ("head_dim", None),
    }
    settings: ClassVar = {
        **Architecture.settings, "attention_bias": True, "attention_output_bias": False, "mlp_bias": False,
    }  # fmt: skip

    def takes_tokenizer(self, spec: Mapping[str, Any]) -> bool:
        """Only Qwen's own: transformers takes but the vocabulary of others, and cuts text as Qwen's does.

        It also adds the token <|endoftext|> where there is none.
        """
        steps = (spec.get("pre_tokenizer") or {}).get("pretokenizers", [])
        cuts = [step.get("pattern", {}).get("Regex") for step in steps if step.get("type") == "Split"]
        names = {token.get("content") for token in spec.get("added_tokens") or []}
        composed = (spec.get("normalizer") or {}).get("type") == "NFC"
        return cuts == [QWEN2_PIECES] and composed and "<|endoftext|>" in names


class Olmo2(Architecture):
    """Llama with norms behind attention and MLP, and of all queries and all keys together."""

    class_name = "Olmo2ForCausalLM"
    model_type = "olmo2"
    naming = names.OLMO2
    fields: ClassVar = {key: field for key, field in Architecture.fields.items() if key != "mlp_bias"} | {
        "rms_norm_eps": ("norm_eps", 1e-5),
    }
    fixed: ClassVar = {"hidden_act": ("silu", "swish")}
    settings: ClassVar = {**Architecture.settings, "qk_norm": "full", "norm_placement": "post"}


class Granite(Architecture):
    """Llama with multipliers."""

    class_name = "GraniteForCausalLM"
    model_type = "granite"
    fields: ClassVar = {
        **Architecture.fields,
        "embedding_multiplier": ("embedding_multiplier", 1.0),
        "attention_multiplier": ("attention_multiplier", 1.0),
        "residual_multiplier": ("residual_multiplier", 1.0),
        "logits_scaling": ("logits_scaling", 1.0),
    }
    fixed: ClassVar = {"hidden_act": ("silu", "swish")}

    def write(self, shape: ModelShape) -> dict[str, Any]:
        """Says the multiplier of attention where the shape has the default."""
        multiplier = shape.attention_multiplier
        return {
            **super().write(shape),
            "attention_multiplier": shape.head_dim**-0.5 if multiplier is None else multiplier,
        }


class GPT2(Architecture):
    """Learned positions, LayerNorm, biases, an MLP without gate; matrices stored transposed."""

    class_name = "GPT2LMHeadModel"
    model_type = "gpt2"
    naming = names.GPT2
    sizes: ClassVar = {
        "vocab_size": "vocab_size",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    }
    fields: ClassVar = {
        "n_inner": ("intermediate_size", None),
        "n_positions": ("max_position_embeddings", 1024),
        "layer_norm_epsilon": ("norm_eps", 1e-5),
        "initializer_range": ("initializer_range", 0.02),
        "attn_pdrop": ("attention_dropout", 0.1),
        "resid_pdrop": ("hidden_dropout", 0.1),
        "tie_word_embeddings": ("tie_word_embeddings", True),
    }
    fixed: ClassVar = {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    written = frozenset()
    settings: ClassVar = {
        "norm": "layernorm", "position_embedding": "learned", "attention_bias": True, "mlp_bias": True,
        "residual_init": "scaled",
    }  # fmt: skip
    activations: ClassVar = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu2": "relu2"}
    """Their activation -> our MLP; the first that has it is written."""

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds the activation, the width of the MLP, and the dropouts, which must agree."""
        activation, dropout = keys.take("activation_function", "gelu_new"), keys.take("embd_pdrop", 0.1)
        mlp = next((ours for theirs, ours in self.activations.items() if theirs == activation), None)
        if mlp is None:
            keys.refuse("activation_function", activation, f"supported are {', '.join(self.activations)}")
        if dropout != found["hidden_dropout"]:
            keys.refuse(
                "embd_pdrop", dropout, f"resid_pdrop is {found['hidden_dropout']}; they must be equal"
            )
        width = found["intermediate_size"]
        if width is None:
            width = 4 * found["hidden_size"]
        return {"mlp": mlp, "intermediate_size": width}

    def filled(self, shape: ModelShape) -> ModelShape:
        """With biases, which experts cannot have."""
        return replace(super().filled(shape), attention_bias=True, mlp_bias=not shape.moe.num_experts)

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds the activation, the dropout that is one number here, and the old name of the context."""
        activation = next(
            (theirs for theirs, ours in self.activations.items() if ours == shape.mlp), "gelu_new"
        )
        return {
            "activation_function": activation,
            "embd_pdrop": shape.hidden_dropout,
            "n_ctx": shape.max_position_embeddings,  # which the published files have, and llama.cpp reads
        }


def filling(name: str) -> float:
    """The value of a tensor that a model lacks, with which it computes the same."""
    return 0.0 if name.endswith(".bias") else 1.0
