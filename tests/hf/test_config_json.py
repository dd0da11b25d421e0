"""No key of a config.json is ignored in silence."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.hf.choose import architecture_of, read_shape
from llmkit.hf.config_json import ConfigKeys

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 101, "hidden_size": 48,
    "intermediate_size": 72, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": 97, "n_embd": 48, "n_layer": 2,
    "n_head": 4,
}  # fmt: skip


def read(config):
    return read_shape(config, "m/config.json", architecture_of(config, "m/config.json"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"attention_chunk_size": 8192}, r"attention_chunk_size = 8192 \(llmkit does not know this key"),
        ({"hidden_act": "gelu"}, r'hidden_act = "gelu" \(only "silu" or "swish"'),
        ({"rope_interleaved": True}, r"rope_interleaved = true \(only false"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor = 0.5 \(this class rotates all"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            r'rope_scaling.rope_type = "dynamic" \(supported',
        ),
        ({"rope_parameters": {"rope_type": "default", "scale": 2}}, "rope_parameters.scale = 2"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 50}, r"hidden_size = 50 \(it cannot be shared out to 4 heads"),
        ({"hidden_size": "big", "head_dim": 12}, r'hidden_size = "big" \(a whole number is expected'),
        ({"num_attention_heads": 0}, r"num_attention_heads = 0 \(a whole number is expected, from 1"),
        ({"num_hidden_layers": 10**7}, "number of layers = 10000000"),
        ({"num_hidden_layers": 10**30}, "num_hidden_layers = 10000"),
        ({"max_position_embeddings": 10**12}, r"max_position_embeddings = 10+ \(a whole number is expected"),
        ({"max_position_embeddings": 2048.0}, r"max_position_embeddings = 2048.0 \(a whole number is"),
        ({"head_dim": 2**30}, r"head_dim = 1073741824 \(a whole number is expected, from 1 to 16777216"),
        ({"head_dim": -8}, r"head_dim = -8 \(a whole number"),
        ({"num_key_value_heads": True}, r"num_key_value_heads = true \(a whole number"),
        ({"vocab_size": 10**30, "intermediate_size": 0}, r"vocab_size = 10+ .*intermediate_size = 0 \(a"),
        (
            {"model_type": "mistral", "architectures": None, "sliding_window": 2**40},
            r"sliding_window = 1099511627776 \(a whole number",
        ),
        ({"rope_theta": 0}, "rope_theta = 0, which is not valid"),
        ({"sliding_window": 4096}, "sliding_window = 4096"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised .*awq"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "such code is never run"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification is not supported",
        ),
        ({"model_type": "mamba", "architectures": []}, "model_type 'mamba' is not supported"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(changes, says):
    with pytest.raises(UserError, match=says):
        read(LLAMA | changes)


PUBLISHED = {
    "gpt2-medium": (GPT2, {"n_special": 0, "predict_special_tokens": True, "n_ctx": 1024}),
    "gpt2-xl": (GPT2, {"output_past": True, "task_specific_params": {"text-generation": {}}}),
    "distilgpt2": (GPT2, {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}),
    "llama-7b": (LLAMA, {"max_sequence_length": 2048, "pad_token_id": 0}),
    "Qwen2.5-0.5B": (LLAMA | {"model_type": "qwen2", "architectures": None}, {"use_mrope": False}),
    "written whole": (
        LLAMA,
        {
            "is_decoder": False, "is_encoder_decoder": False, "add_cross_attention": False,
            "pruned_heads": {}, "tie_encoder_decoder": False, "cross_attention_hidden_size": None,
            "tokenizer_class": "LlamaTokenizer", "prefix": "", "max_length": 20, "top_k": 50,
        },
    ),
}  # fmt: skip
"""Keys of published files beside those of their class."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_files_have_besides_says_nothing(name):
    config, more = PUBLISHED[name]
    assert read(config | more) == read(config)


@pytest.mark.parametrize("more", [{"use_mrope": True}, {"pruned_heads": {"0": [1]}}, {"is_decoder": True}])
def test_what_changes_a_model_is_refused(more):
    with pytest.raises(UserError, match=f"{next(iter(more))} = "):
        read(LLAMA | more)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true"),
        ({"activation_function": "gelu"}, 'activation_function = "gelu"'),
        ({"activation_function": ["gelu"]}, r'activation_function = \["gelu"\]'),
        ({"embd_pdrop": 0.2}, "embd_pdrop = 0.2 .*resid_pdrop is 0.1"),
    ],
)
def test_what_gpt2_has_of_its_own_is_refused_by_name(changes, says):
    with pytest.raises(UserError, match=says):
        read(GPT2 | changes)


def test_all_that_is_wrong_is_named_at_once():
    with pytest.raises(UserError, match=r"hidden_act.*new_key"):
        read(LLAMA | {"hidden_act": "relu", "new_key": 1})


def test_keys_without_effect_and_keys_that_are_null_say_nothing():
    more = {
        "quantization_config": None,
        "auto_map": None,
        "use_cache": False,
        "transformers_version": "4.40.0",
        "temperature": 0.6,
        "new_key": None,
    }
    assert read(LLAMA | more) == read(LLAMA)


def test_a_number_is_not_a_truth_value():
    keys = ConfigKeys({"key": 0}, "m/config.json")
    keys.expect("key", False)
    with pytest.raises(UserError, match="key = 0"):
        keys.finish()


def test_absent_keys_have_the_defaults_of_transformers():
    llama, gpt2 = read(LLAMA), read(GPT2)
    assert (llama.norm_eps, llama.tie_word_embeddings, llama.rope_theta) == (1e-6, False, 10000.0)
    assert (llama.num_key_value_heads, llama.head_dim, llama.max_position_embeddings) == (4, 12, 2048)
    assert (gpt2.intermediate_size, gpt2.tie_word_embeddings, gpt2.hidden_dropout) == (192, True, 0.1)
