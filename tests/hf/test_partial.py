"""StableLM and Phi-3: what their files say, as published, and what of it is refused."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.hf.choose import architecture_of, read_shape

SIZES = {
    "vocab_size": 101, "hidden_size": 64, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
STABLELM = SIZES | {"model_type": "stablelm", "num_key_value_heads": 4}
PHI3 = SIZES | {
    "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "embd_pdrop": 0.0,
    "resid_pdrop": 0.0, "hidden_act": "silu", "original_max_position_embeddings": 4096,
    "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047, "max_position_embeddings": 4096,
}  # fmt: skip


def read(config):
    return read_shape(config, "m/config.json", architecture_of(config, "m/config.json"))


def test_absent_keys_have_the_defaults_of_transformers():
    found = read(STABLELM)
    assert (found.partial_rotary_factor, found.norm_eps, found.attention_bias) == (0.25, 1e-5, False)
    assert found.norm == "layernorm" and found.max_position_embeddings == 4096 and not found.output_bias
    assert read(STABLELM | {"partial_rotary_factor": 0.5, "use_qkv_bias": True}).rotary_dim == 8
    inner = {"rope_type": "default", "partial_rotary_factor": 0.5}
    assert read(STABLELM | {"rope_parameters": inner, "partial_rotary_factor": 1.0}).rotary_dim == 8
    assert read(PHI3).partial_rotary_factor == 1.0 and read(PHI3).sliding_window == 2047
    assert read(PHI3 | {"sliding_window": None}).sliding_window is None


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (STABLELM, {"use_parallel_residual": True}, r"use_parallel_residual = true \(only false"),
        (STABLELM, {"qk_layernorm": True}, r"qk_layernorm = true \(only false"),
        (STABLELM, {"hidden_dropout": 0.1}, r"hidden_dropout = 0.1 \(only 0.0"),
        (STABLELM, {"partial_rotary_factor": 0.2}, "is 3 channels; rope rotates pairs"),
        (STABLELM, {"partial_rotary_factor": "half"}, "partial_rotary_factor = 'half', which is not valid"),
        (PHI3, {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, 'rope_type = "longrope"'),
        (PHI3, {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"rope_scaling = .*\(this class has"),
        (PHI3, {"attention_bias": True}, r"attention_bias = true \(only false"),
        (PHI3, {"resid_pdrop": 0.1}, r"resid_pdrop = 0.1 \(only 0.0"),
        (PHI3, {"auto_map": {"AutoModel": "modeling_phi3.Phi3"}}, "such code is never run"),
    ],
)
def test_what_is_computed_otherwise_is_refused(config, changes, says):
    with pytest.raises(UserError, match=says):
        read(config | changes)
