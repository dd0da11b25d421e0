"""Mixtral, Qwen3-MoE and OLMoE: what their files say, and what of it is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmkit.config.model_section import Moe
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.hf.choose import architecture_for, architecture_of, read_shape

SIZES = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2,
}  # fmt: skip
MIXTRAL = SIZES | {"model_type": "mixtral", "num_local_experts": 6}
QWEN = SIZES | {"model_type": "qwen3_moe", "num_experts": 6, "moe_intermediate_size": 20}
OLMOE = SIZES | {"model_type": "olmoe", "num_experts": 6}


def read(keys: dict[str, Any]) -> ModelShape:
    return read_shape(keys, "config.json", architecture_of(keys, "config.json"))


def test_what_the_files_do_not_say_is_as_in_transformers():
    alike = {"num_experts": 6, "router_aux_loss_coef": 0.001}
    assert read(MIXTRAL).moe == Moe(**alike)
    assert read(OLMOE).moe == Moe(**alike | {"norm_topk_prob": False, "router_aux_loss_coef": 0.01})
    assert read(QWEN).moe == Moe(**alike, norm_topk_prob=False, moe_intermediate_size=20)


def test_the_layers_with_experts_are_those_of_transformers():
    shape = read(QWEN | {"num_hidden_layers": 6, "mlp_only_layers": [0, 1], "decoder_sparse_step": 2})
    assert [shape.has_experts(layer) for layer in range(6)] == [False, False, False, True, False, True]


@pytest.mark.parametrize("keys", [MIXTRAL, QWEN, OLMOE], ids=lambda keys: keys["model_type"])
def test_the_number_of_experts_may_have_either_name(keys):
    other = {name: value for name, value in keys.items() if name not in ("num_experts", "num_local_experts")}
    for name in ("num_experts", "num_local_experts"):
        assert read(other | {name: 6}) == read(keys)
    with pytest.raises(UserError, match=r"num_(local_)?experts = . \(num_(local_)?experts is .\)"):
        read(other | {"num_experts": 6, "num_local_experts": 5})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (MIXTRAL | {"num_experts_per_tok": 7}, r"num_experts_per_tok = 7 \(it has 6 experts\)"),
        (MIXTRAL | {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1"),
        (QWEN | {"mlp_only_layers": [0, 2]}, "only the first layers can be without experts"),
        (QWEN | {"decoder_sparse_step": 0}, "decoder_sparse_step = 0"),
        (OLMOE | {"clip_qkv": 8.0}, "clip_qkv = 8.0"),
        (OLMOE | {"shared_expert_intermediate_size": 64}, "llmkit does not know this key"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(keys, message):
    with pytest.raises(UserError, match=message):
        read(keys)


@pytest.mark.parametrize("keys", [MIXTRAL, QWEN, OLMOE], ids=lambda keys: keys["model_type"])
def test_a_mixture_is_exported_as_the_class_that_it_was_read_from(keys):
    assert architecture_for(read(keys)).model_type == keys["model_type"]


def test_a_mixture_that_no_class_has_is_refused_by_the_name_of_the_setting():
    shape = read(QWEN)
    shape = ModelShape.from_dict({**shape.to_dict(), "moe": {**shape.moe.model_dump(), "router": "sigmoid"}})
    with pytest.raises(UserError, match=r"cannot express model\.moe = "):
        architecture_for(shape)
    biased = replace(read(MIXTRAL), moe=read(MIXTRAL).moe.model_copy(update={"bias_update_rate": 0.0}))
    with pytest.raises(UserError, match=r"express model\.moe\.bias_update_rate = 0\.0 \(no class has biases"):
        architecture_for(biased)
