"""As which class of transformers a model is exported, and what no class can express."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from llmkit.errors import UserError
from llmkit.hf.choose import architecture_for
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.hf.models import qwen2_tokenizer
from tests.shapes import GPT2_STYLE, LLAMA_STYLE


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        (LLAMA_STYLE, "LlamaForCausalLM"),
        (replace(LLAMA_STYLE, attention_bias=True, mlp_bias=True), "LlamaForCausalLM"),
        (replace(LLAMA_STYLE, sliding_window=LLAMA_STYLE.max_position_embeddings), "LlamaForCausalLM"),
        (replace(LLAMA_STYLE, attention_multiplier=LLAMA_STYLE.head_dim**-0.5), "LlamaForCausalLM"),
        (replace(LLAMA_STYLE, hidden_dropout=0.1, residual_init="zero"), "LlamaForCausalLM"),
        (replace(LLAMA_STYLE, sliding_window=7), "MistralForCausalLM"),
        (replace(LLAMA_STYLE, num_attention_heads=5, num_key_value_heads=5), "MistralForCausalLM"),
        (replace(LLAMA_STYLE, qk_norm=True, sliding_window=7), "Qwen3ForCausalLM"),
        (replace(LLAMA_STYLE, residual_multiplier=0.5), "GraniteForCausalLM"),
        (GPT2_STYLE, "GPT2LMHeadModel"),
        (replace(LLAMA_STYLE, partial_rotary_factor=0.4), "Phi3ForCausalLM"),
        (replace(LLAMA_STYLE, norm="layernorm", head_dim=8), "StableLmForCausalLM"),
        (replace(GPT2_STYLE, mlp_bias=False, attention_bias=False, norm_weight=False), "GPT2LMHeadModel"),
        (replace(LLAMA_STYLE, norm_weight=False, qk_norm=True), "Qwen3ForCausalLM"),
        (replace(GPT2_STYLE, mlp="relu2", tie_word_embeddings=False), "GPT2LMHeadModel"),
    ],
)
def test_the_first_class_that_can_express_a_model_is_chosen(shape, name):
    assert architecture_for(shape).class_name == name


def test_qwen2_is_not_chosen_for_text_that_its_tokenizer_would_cut_otherwise():
    """transformers replaces the tokenizer by Qwen's, whatever tokenizer_config.json names."""
    shape = replace(LLAMA_STYLE, attention_bias=True, attention_output_bias=False)
    other = json.loads(bytes_tokenizer("<|end|>").files()["tokenizer.json"])
    own = json.loads(qwen2_tokenizer().files()["tokenizer.json"])
    assert architecture_for(shape, own).class_name == "Qwen2ForCausalLM"
    assert architecture_for(shape, other).class_name == "LlamaForCausalLM"
    assert architecture_for(shape, other).filled(shape).output_bias


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (
            replace(LLAMA_STYLE, key_shift=0.5, value_embeddings=True),
            ["key_shift = 0.5", "value_embeddings = True"],
        ),
        (replace(LLAMA_STYLE, mlp="relu2"), ["mlp = relu2"]),
        (replace(LLAMA_STYLE, final_logit_softcapping=15.0), ["final_logit_softcapping = 15.0"]),
        (replace(GPT2_STYLE, head_dim=14), ["head_dim = 14"]),
        (replace(LLAMA_STYLE, partial_rotary_factor=0.4, qk_norm=True), ["partial_rotary_factor = 0.4"]),
    ],
)
def test_what_no_class_can_express_is_named(shape, named):
    with pytest.raises(UserError, match="no class of transformers") as refusal:
        architecture_for(shape)
    assert all(f"model.{setting}" in str(refusal.value) for setting in named)
    assert str(refusal.value).count("model.") == len(named)
