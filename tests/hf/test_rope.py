"""Rotary positions as transformers 5 and 4 write them."""

from __future__ import annotations

from llmkit.hf.config_json import ConfigKeys
from llmkit.hf.rope import read_rope


def read(**config):
    keys = ConfigKeys(config, "m/config.json")
    found = read_rope(keys, 4096)
    keys.finish()
    return found


def test_both_forms_say_the_same():
    llama3 = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    }
    wanted = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **llama3}}
    assert read(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3}) == wanted
    assert read(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **llama3}) == wanted
    assert read(rope_theta=5e5, rope_scaling={"type": "llama3", **llama3}) == wanted


def test_without_scaling_there_is_the_base_alone():
    assert read() == {"rope_theta": 10000.0}
    assert read(rope_theta=7.0, rope_scaling=None) == {"rope_theta": 7.0}
    assert read(rope_theta=7.0, rope_parameters={"rope_type": "default", "rope_theta": 9.0}) == {
        "rope_theta": 9.0
    }


def test_the_length_of_pretraining_is_the_models_where_it_is_not_said():
    found = read(rope_scaling={"rope_type": "yarn", "factor": 2.0})["rope_scaling"]
    assert found == {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 4096}
