"""The classes of transformers with mixtures of experts: Mixtral, Qwen3-MoE and OLMoE."""

from __future__ import annotations

from typing import Any, ClassVar

from llmkit.config.shape import ModelShape
from llmkit.hf import names
from llmkit.hf.architectures import Architecture, Fields, Mistral, Qwen3
from llmkit.hf.config_json import ConfigKeys

NAMES = ("num_experts", "num_local_experts")
"""Of the number of experts: versions of transformers write one or the other."""


class Mixture(Architecture):
    """A class with experts.

    counts: its key of the number of experts, and what transformers takes where that, or num_experts_per_tok,
    is absent. aux_loss_coef: what it takes where router_aux_loss_coef is absent.
    """

    counts: ClassVar[tuple[str, int, int]]
    aux_loss_coef: ClassVar[float] = 0.001

    def read_more(self, keys: ConfigKeys, found: Fields) -> Fields:
        """Adds the experts, whose losses are taken as what a training of ours would have."""
        key, experts, chosen = self.counts
        others = {each: keys.take(each) for each in NAMES if each != key}
        count = keys.count(key, next((other for other in others.values() if other is not None), experts))
        for other, value in others.items():
            if value not in (None, count):
                keys.refuse(other, value, f"{key} is {count}")
        moe: dict[str, Any] = {
            "num_experts": count,
            "num_experts_per_tok": keys.count("num_experts_per_tok", chosen),
            "router_aux_loss_coef": keys.take("router_aux_loss_coef", self.aux_loss_coef),
            "router_z_loss_coef": 0.0,
            "router": "softmax",
        }
        keys.take("output_router_logits")  # whether the balance loss is added: llmkit's setting says so
        if moe["num_experts_per_tok"] > count:
            keys.refuse("num_experts_per_tok", moe["num_experts_per_tok"], f"it has {count} experts")
        return super().read_more(keys, found) | {"moe": moe | self.read_experts(keys)}

    def read_experts(self, keys: ConfigKeys) -> Fields:
        """Further settings of the section moe."""
        return {}

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds the experts."""
        return {
            **super().write_more(shape),
            self.counts[0]: shape.moe.num_experts,
            "num_experts_per_tok": shape.moe.num_experts_per_tok,
            "router_aux_loss_coef": shape.moe.router_aux_loss_coef,
        }


class _EveryLayer(Mixture):
    """Experts in every layer, whose width is the key intermediate_size."""

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Writes the width of an expert."""
        return {**super().write_more(shape), "intermediate_size": shape.expert_width}


class Mixtral(_EveryLayer, Mistral):
    """Mistral with experts, whose weights sum up to 1."""

    class_name = "MixtralForCausalLM"
    model_type = "mixtral"
    naming = names.MIXTRAL
    counts = ("num_local_experts", 8, 2)
    fixed: ClassVar = {**Mistral.fixed, "router_jitter_noise": (0.0, 0)}
    fields: ClassVar = {**Mistral.fields, "rms_norm_eps": ("norm_eps", 1e-5)}
    default_window = None
    default_theta = 1e6

    def read_experts(self, keys: ConfigKeys) -> Fields:
        """The weights are always normalised."""
        return {"norm_topk_prob": True}


class Qwen3Moe(Mixture, Qwen3):
    """Qwen3 with experts in some layers or all."""

    class_name = "Qwen3MoeForCausalLM"
    model_type = "qwen3_moe"
    naming = names.QWEN3_MOE
    counts = ("num_experts", 128, 8)
    fields: ClassVar = {**Qwen3.fields, "head_dim": ("head_dim", None)}

    def read_experts(self, keys: ConfigKeys) -> Fields:
        """Which layers have experts; how wide these are, and their weights."""
        dense = keys.take("mlp_only_layers") or []
        if dense != list(range(len(dense))):
            keys.refuse("mlp_only_layers", dense, "only the first layers can be without experts")
            dense = []
        return {
            "moe_intermediate_size": keys.count("moe_intermediate_size", 768),
            "norm_topk_prob": keys.take("norm_topk_prob", False),
            "first_dense_layers": len(dense),
            "every_n_layers": keys.count("decoder_sparse_step", 1),
        }

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds the same."""
        moe = shape.moe
        return {
            **super().write_more(shape),
            "moe_intermediate_size": shape.expert_width,
            "norm_topk_prob": moe.norm_topk_prob,
            "mlp_only_layers": list(range(min(moe.first_dense_layers, shape.num_hidden_layers))),
            "decoder_sparse_step": moe.every_n_layers,
        }


class Olmoe(_EveryLayer):
    """Llama with experts, and norms of all queries and all keys together."""

    class_name = "OlmoeForCausalLM"
    model_type = "olmoe"
    naming = names.QWEN3_MOE
    divisible = True
    counts = ("num_experts", 64, 8)
    aux_loss_coef = 0.01
    fields: ClassVar = {
        key: field for key, field in Architecture.fields.items() if key not in ("mlp_bias", "head_dim")
    } | {
        "max_position_embeddings": ("max_position_embeddings", 4096),
        "rms_norm_eps": ("norm_eps", 1e-5),
    }
    fixed: ClassVar = {"hidden_act": ("silu", "swish"), "clip_qkv": (None,)}
    settings: ClassVar = {**Architecture.settings, "qk_norm": "full"}

    def read_experts(self, keys: ConfigKeys) -> Fields:
        """How the weights are normalised."""
        return {"norm_topk_prob": keys.take("norm_topk_prob", False)}

    def write_more(self, shape: ModelShape) -> dict[str, Any]:
        """Adds the same."""
        return {**super().write_more(shape), "norm_topk_prob": shape.moe.norm_topk_prob}
