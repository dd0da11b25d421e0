"""Which class of transformers a config.json is of, and which one can express a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from llmkit.config.model_section import UNSCALED, Moe
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.hf import architectures, gemma, mixtures, partial
from llmkit.hf.architectures import Architecture
from llmkit.hf.config_json import ConfigKeys

ARCHITECTURES: tuple[Architecture, ...] = (
    architectures.Qwen2(), architectures.Llama(), architectures.Mistral(), architectures.Qwen3(),
    architectures.Olmo2(), architectures.GPT2(), architectures.Granite(), gemma.Gemma(), gemma.Gemma2(),
    gemma.Gemma3(), partial.StableLm(), partial.Phi3(), mixtures.Mixtral(), mixtures.Qwen3Moe(),
    mixtures.Olmoe(),
)  # fmt: skip
"""All that are known. A model is exported as the first that can express it."""
VOCAB_PAD_MULTIPLE = 128
"""To a multiple of this the vocabulary of a model that is read is padded in memory."""
OF_TRAINING = frozenset({
    "padded_vocab_size", "vocab_pad_multiple", "initializer_range", "embedding_initializer_range",
    "head_initializer_range", "residual_init", "attention_dropout", "hidden_dropout",
})  # fmt: skip
"""Fields that say nothing of what a trained model computes."""


def architecture_of(config: Mapping[str, Any], origin: str) -> Architecture:
    """The class of a config.json. Raises UserError for one that is not known, or is more than a model."""
    if method := config.get("quantization_config"):
        method = method.get("quant_method", "?") if isinstance(method, dict) else method
        raise UserError(
            f"{origin}: the weights are quantised (quantization_config: {method}); take the model's folder "
            "with weights in bf16, fp16 or fp32 (train.lora.quantize_base keeps them in few bits)"
        )
    if config.get("auto_map"):
        raise UserError(
            f"{origin}: the model is defined by Python code in its own folder (auto_map), and such code is "
            "never run; take a version of it for a class of transformers itself"
        )
    kind, named = config.get("model_type"), config.get("architectures") or []
    for each in ARCHITECTURES:
        if kind == each.model_type and named in ([], [each.class_name]):
            return each
    known = ", ".join(each.class_name for each in ARCHITECTURES)
    what = ", ".join(map(str, named)) if isinstance(named, list) and named else f"model_type {kind!r}"
    raise UserError(f"{origin}: {what} is not supported; supported are {known}")


def read_shape(config: Mapping[str, Any], origin: str, architecture: Architecture) -> ModelShape:
    """The model of a config.json. Raises UserError for whatever of it cannot be computed, all at once."""
    keys = ConfigKeys(config, origin)
    fields = architecture.read(keys)
    keys.finish()
    size = fields["vocab_size"]
    if not isinstance(size, int):
        raise UserError(f"{origin}: vocab_size = {size!r} is not a number of tokens")
    padded = -(-size // VOCAB_PAD_MULTIPLE) * VOCAB_PAD_MULTIPLE
    padding = {"padded_vocab_size": padded, "vocab_pad_multiple": VOCAB_PAD_MULTIPLE}
    try:
        return ModelShape.from_dict({**fields, **padding}, origin)
    except UserError as error:
        raise UserError(f"{origin}: {str(error).removeprefix(f'{origin}: ')}") from error


def architecture_for(shape: ModelShape, tokenizer: Mapping[str, Any] | None = None) -> Architecture:
    """The first class that can express a model, which is `filled` for it.

    tokenizer: a tokenizer.json; a class whose own tokenizer would cut text otherwise comes last.
    Raises UserError, naming what the nearest class cannot express.
    """
    found = [(differences(each, each.filled(shape)), each) for each in ARCHITECTURES]
    if tokenizer is not None:
        found.sort(key=lambda pair: not pair[1].takes_tokenizer(tokenizer))
    missing, nearest = min(found, key=lambda pair: len(pair[0]))
    if missing:
        settings = ", ".join(_shown(name, shape) for name in missing)
        raise UserError(
            f"no class of transformers computes what this model does: {nearest.class_name}, the nearest, "
            f"cannot express {settings}. Its checkpoints are of use to llmkit alone; to train a model "
            "that can be exported, start from a file in configs/models, or configs/demo-llama.yaml"
        )
    return nearest


def _shown(name: str, shape: ModelShape) -> str:
    """A field that cannot be expressed, in a message."""
    rate = shape.moe.bias_update_rate
    if name == "moe" and rate is not None:
        return f"model.moe.bias_update_rate = {rate} (no class has biases of experts)"
    return f"model.{name} = {getattr(shape, name)}"


def differences(architecture: Architecture, shape: ModelShape) -> list[str]:
    """The fields of a model that this class cannot express: those lost where it is written and read again."""
    keys = ConfigKeys(architecture.write(shape), architecture.class_name)
    defaults = {each.name: each.default for each in dataclasses.fields(ModelShape)}
    wanted, found = _effective(shape.to_dict()), _effective({**defaults, **architecture.read(keys)})
    lost = [name for name in wanted if name not in OF_TRAINING and wanted[name] != found[name]]
    return lost + [name for name in architecture.refused_sizes(shape) if name not in lost]


def _effective(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a model, alike where models with different ones compute the same."""
    found, width = dict(fields), fields["head_dim"]
    multiplier = found["attention_multiplier"]
    found["attention_multiplier"] = _rounded(1.0 if multiplier is None else multiplier * width**0.5)
    found["embedding_multiplier"] = _rounded(found["embedding_multiplier"])
    found |= _effective_mlp(found)
    found["rope_scaling"] = UNSCALED.model_copy(update=dict(found["rope_scaling"]))
    if found["attention_output_bias"] is None:
        found["attention_output_bias"] = found["attention_bias"]
    window, types = found["sliding_window"], found["layer_types"] or ["sliding_attention"]
    if window is not None and window >= found["max_position_embeddings"]:
        window = None
    slide = [types[layer % len(types)] == "sliding_attention" for layer in range(found["num_hidden_layers"])]
    found |= {"sliding_window": window, "layer_types": None if window is None else slide}
    if found["sliding_rope_theta"] == found["rope_theta"] and found["rope_scaling"] == UNSCALED:
        found["sliding_rope_theta"] = None
    if found["position_embedding"] == "learned":
        found |= {name: None for name in found if name.startswith("rope_")}
    return found


def _effective_mlp(found: Mapping[str, Any]) -> dict[str, Any]:
    """The width of the MLP, and the section moe, as they matter: without what only trains a router."""
    moe = Moe.model_validate(dict(found["moe"]))
    if not moe.num_experts:
        return {"moe": None}
    shape, layers = moe.model_dump(), found["num_hidden_layers"]
    for name in ("router_aux_loss_coef", "router_z_loss_coef", "capacity_factor"):
        del shape[name]
    shape["moe_intermediate_size"] = moe.moe_intermediate_size or found["intermediate_size"]
    which = [moe.is_in(layer) for layer in range(layers)]
    shape |= {"first_dense_layers": None, "every_n_layers": None, "layers": which}
    return {"moe": shape} | ({"intermediate_size": None} if all(which) else {})


def _rounded(value: float) -> float:
    """With the digits that fp32 has, about."""
    return float(f"{value:.6e}")
