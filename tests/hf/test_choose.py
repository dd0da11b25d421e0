"""As which class of transformers a model is exported, and what no class can express."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.errors import UserError
from llmkit.hf.choose import architecture_for
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
        (replace(GPT2_STYLE, mlp="relu2", tie_word_embeddings=False), "GPT2LMHeadModel"),
    ],
)
def test_the_first_class_that_can_express_a_model_is_chosen(shape, name):
    assert architecture_for(shape).class_name == name


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (
            replace(LLAMA_STYLE, key_shift=0.5, value_embeddings=True),
            ["key_shift = 0.5", "value_embeddings = True"],
        ),
        (replace(LLAMA_STYLE, mlp="relu2"), ["mlp = relu2"]),
        (replace(LLAMA_STYLE, final_logit_softcapping=15.0), ["final_logit_softcapping = 15.0"]),
        (replace(GPT2_STYLE, mlp_bias=False), ["mlp_bias = False"]),
        (replace(GPT2_STYLE, head_dim=14), ["head_dim = 14"]),
    ],
)
def test_what_no_class_can_express_is_named(shape, named):
    with pytest.raises(UserError, match="no class of transformers") as refusal:
        architecture_for(shape)
    assert all(f"model.{setting}" in str(refusal.value) for setting in named)
    assert str(refusal.value).count("model.") == len(named)
