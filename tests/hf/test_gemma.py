"""What Gemma's files say in ways of their own; numbers are in test_architectures.py."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.hf.choose import architecture_of, read_shape
from llmkit.hf.windows import FULL, SLIDING

GEMMA = {
    "vocab_size": 101, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 8,
    "num_attention_heads": 4,
}  # fmt: skip


def read(kind, **more):
    config = GEMMA | {"model_type": kind} | more
    return read_shape(config, "m/config.json", architecture_of(config, "m/config.json"))


def test_absent_keys_have_the_defaults_of_transformers():
    first, second, third = read("gemma"), read("gemma2"), read("gemma3_text")
    assert (first.head_dim, first.embedding_multiplier, first.tie_word_embeddings) == (256, 48**0.5, True)
    assert (second.attn_logit_softcapping, second.final_logit_softcapping) == (50.0, 30.0)
    assert second.layer_types == (SLIDING, FULL) * 4 and second.sliding_window == 4096
    assert second.attention_multiplier == 1 / 16
    assert third.layer_types == (*[SLIDING] * 5, FULL, SLIDING, SLIDING)
    assert (third.rope_theta, third.sliding_rope_theta, third.attn_logit_softcapping) == (1e6, 1e4, None)


def test_null_takes_a_bound_away():
    assert read("gemma2", attn_logit_softcapping=None).attn_logit_softcapping is None


def test_older_files_have_their_bases_in_keys_of_their_own():
    older = read(
        "gemma3_text",
        rope_theta=5e5,
        rope_local_base_freq=7.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    )
    assert (older.rope_theta, older.sliding_rope_theta, older.rope_scaling.factor) == (5e5, 7.0, 8.0)


@pytest.mark.parametrize(
    ("kind", "changes", "says"),
    [
        ("gemma", {"hidden_act": "silu"}, 'hidden_act = "silu"'),
        ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
        ("gemma2", {"sliding_window_pattern": 0}, r"sliding_window_pattern = 0 \(a whole number"),
        ("gemma2", {"query_pre_attn_scalar": None}, r"query_pre_attn_scalar = null \(a number above 0"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
        ("gemma3_text", {"layer_types": ["local"]}, r'layer_types = \["local"\]'),
        ("gemma3_text", {"rope_scaling": 2.0}, "rope_scaling = 2.0"),
        ("gemma3_text", {"rope_parameters": {FULL: 3}}, "rope_parameters"),
        ("gemma3_text", {"rope_parameters": {"rope_type": "default"}}, "rope_parameters"),
        (
            "gemma3",
            {"architectures": ["Gemma3ForConditionalGeneration"]},
            "Gemma3ForConditionalGeneration is not",
        ),
    ],
)
def test_what_is_not_computed_is_refused_by_name(kind, changes, says):
    with pytest.raises(UserError, match=says):
        read(kind, **changes)
