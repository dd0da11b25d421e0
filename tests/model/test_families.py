"""The settings of published families against transformers' own classes: logits and every gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from llmkit.batch import Batch
from llmkit.config.model_section import RopeScaling
from llmkit.config.shape import ModelShape
from llmkit.model.gpt import GPT
from tests.shapes import LLAMA_STYLE, randomise

TOLERANCE = 1e-5
BASE = replace(LLAMA_STYLE, num_hidden_layers=3, rope_theta=5e3)
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
YARN: dict[str, Any] = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12, "beta_fast": 3.0,
}  # fmt: skip
SLIDING, FULL = "sliding_attention", "full_attention"
GEMMA = replace(
    BASE, mlp="geglu", norm_weight_offset=1.0, tie_word_embeddings=True, embedding_multiplier=48**0.5
)
POST = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
BOTH = {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm", **POST}
PRE = {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


def scaled(shape: ModelShape, **scaling: Any) -> ModelShape:
    return replace(shape, rope_scaling=RopeScaling.model_validate(scaling))


FAMILIES: dict[str, tuple[str, ModelShape, dict[str, Any], dict[str, str]]] = {
    # model_type, our shape, their further settings, their names of the norms
    "llama 3": ("llama", scaled(BASE, **LLAMA3), {"rope_parameters": LLAMA3}, PRE),
    "llama, yarn, biases": (
        "llama", replace(scaled(BASE, **YARN), attention_bias=True, mlp_bias=True),
        {"rope_parameters": YARN, "attention_bias": True, "mlp_bias": True}, PRE,
    ),
    "llama, linear": (
        "llama", scaled(BASE, rope_type="linear", factor=3.0),
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0}}, PRE,
    ),
    "smollm2": ("llama", replace(BASE, tie_word_embeddings=True, head_dim=8), {}, PRE),
    "mistral": ("mistral", replace(BASE, sliding_window=7), {"sliding_window": 7}, PRE),
    "qwen2": (
        "qwen2",
        replace(
            BASE, head_dim=8, attention_bias=True, attention_output_bias=False, sliding_window=6,
            layer_types=(FULL, SLIDING, SLIDING),
        ),
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}, PRE,
    ),
    "qwen3": (
        "qwen3", replace(scaled(BASE, **YARN), qk_norm=True, tie_word_embeddings=True),
        {"rope_parameters": YARN}, PRE,
    ),
    "olmo 2": ("olmo2", replace(BASE, qk_norm="full", norm_placement="post", head_dim=8), {}, POST),
    "stablelm": (
        "stablelm",
        replace(
            BASE, norm="layernorm", attention_bias=True, attention_output_bias=False, head_dim=8,
            partial_rotary_factor=0.5,
        ),
        {
            "use_qkv_bias": True, "layer_norm_eps": BASE.norm_eps,
            "rope_parameters": {"partial_rotary_factor": 0.5},
        },
        PRE,
    ),
    "gemma": ("gemma", GEMMA, {"hidden_activation": "gelu_pytorch_tanh"}, PRE),
    "gemma 2": (
        "gemma2",
        replace(
            GEMMA, norm_placement="both", attn_logit_softcapping=2.0, final_logit_softcapping=3.0,
            sliding_window=6, layer_types=(SLIDING, FULL), attention_multiplier=13**-0.5,
        ),
        {
            "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "sliding_window": 6,
            "query_pre_attn_scalar": 13,
        },
        BOTH,
    ),
    "gemma 3": (
        "gemma3_text",
        replace(
            scaled(GEMMA, rope_type="linear", factor=8.0), norm_placement="both", qk_norm=True,
            sliding_window=6, layer_types=(SLIDING, SLIDING, FULL), sliding_rope_theta=100.0,
            attention_multiplier=13**-0.5,
        ),
        {
            "sliding_window": 6, "layer_types": [SLIDING, SLIDING, FULL], "query_pre_attn_scalar": 13,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e3},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        BOTH,
    ),
}  # fmt: skip
"""At odd sizes: 6 heads on 2, of width 8 or 10, in a stream of 48; a vocabulary of 101."""


def theirs_of(kind: str, shape: ModelShape, further: dict[str, Any]) -> torch.nn.Module:
    further = dict(further)
    rope = further.pop("rope_parameters", {"rope_type": "default"})
    if FULL not in rope:
        rope = {"rope_theta": shape.rope_theta, "rope_type": "default", **rope}
    names = (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings",
    )  # fmt: skip
    config = AutoConfig.for_model(
        kind, **{name: getattr(shape, name) for name in names}, rms_norm_eps=shape.norm_eps,
        rope_parameters=rope, attention_dropout=0.0, pad_token_id=None, **further,
    )  # fmt: skip
    return randomise(AutoModelForCausalLM.from_config(config, attn_implementation="eager").float())


def their_name(name: str, norms: dict[str, str]) -> str:
    """For one of our full tensors, theirs."""
    owner, _, kind = name.rpartition(".")
    top = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    if owner in top:
        return f"{top[owner]}.{kind}"
    _, number, inner = owner.split(".", 2)
    return f"model.layers.{number}.{norms.get(inner, inner.replace('attention', 'self_attn'))}.{kind}"


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_and_every_gradient_equal_those_of_transformers(name: str) -> None:
    kind, shape, further, norms = FAMILIES[name]
    theirs = theirs_of(kind, shape, further)
    state = dict(theirs.named_parameters())
    ours = GPT(shape)
    weights = dict(ours.named_parameters())
    seen = set()
    with torch.no_grad():
        for stored, parts in ours.parameter_slices().items():
            weights[stored].zero_()
            for part in parts:
                seen.add(their_name(part.name, norms))
                weights[stored][part.start : part.stop] = state[their_name(part.name, norms)]
    assert seen == state.keys(), "each of their tensors is one of ours"
    tokens = torch.randint(shape.vocab_size, (3, 38), generator=torch.Generator().manual_seed(1))
    wanted = theirs(input_ids=tokens[:, :-1]).logits
    reference = torch.nn.functional.cross_entropy(wanted.flatten(0, 1), tokens[:, 1:].flatten())
    reference.backward()
    loss = ours(Batch(tokens[:, :-1], tokens[:, 1:]))
    mean = loss.nats.sum() / loss.targets.sum()
    mean.backward()
    with torch.no_grad():
        found = ours.eval().logits(tokens[:, :-1])
    assert relative(found, wanted[:, -1].detach()) <= TOLERANCE
    assert mean.item() == pytest.approx(reference.item(), rel=1e-6)
    size = torch.stack([each.grad.norm() for each in state.values()]).norm()
    for stored, parts in ours.parameter_slices().items():
        for part in parts:
            gradient = state[their_name(part.name, norms)].grad
            difference = (weights[stored].grad[part.start : part.stop] - gradient).norm()
            # Small ones are sums of large terms that cancel, and have their rounding.
            assert difference <= TOLERANCE * max(gradient.norm(), 0.05 * size), part.name


def relative(found: Tensor, wanted: Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    return float((found - wanted).norm() / wanted.norm())
