"""Settings of a model that contradict each other are named, in a configuration and in a stored shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.model_rules import contradictions
from llmkit.config.model_section import Model
from tests.config.test_shape import SMALL, shape

Refused = Callable[..., str]
LLAMA3 = "{rope_type: llama3, factor: 8, original_max_position_embeddings: 64, low_freq_factor: 1"
SLIDING = "model.layer_types=[sliding_attention]"

WRONG = [
    # (overrides, what the message says)
    (
        ["model.rope_scaling.factor=2"],
        "model.rope_scaling.factor 2.0 (command line) has no effect with model.rope_scaling.rope_type",
    ),
    (
        ["model.rope_scaling.rope_type=linear"],
        'model.rope_scaling.rope_type "linear" (command line) needs model.rope_scaling.factor',
    ),
    ([f"model.rope_scaling={LLAMA3}}}"], '"llama3" (command line) needs model.rope_scaling.high_freq_factor'),
    (
        [f"model.rope_scaling={LLAMA3}, high_freq_factor: 1}}"],
        "low_freq_factor 1.0 (command line) is not smaller than model.rope_scaling.high_freq_factor",
    ),
    (
        ["model.rope_scaling={rope_type: yarn, factor: 2, original_max_position_embeddings: 8, mscale: 1}"],
        "model.rope_scaling.mscale 1.0 (command line) and model.rope_scaling.mscale_all_dim null",
    ),
    (
        ["model.position_embedding=learned", "model.rope_scaling={rope_type: linear, factor: 2}"],
        'model.rope_scaling.rope_type "linear" (command line) does not go with model.position_embedding',
    ),
    (
        ["model.position_embedding=learned", "model.partial_rotary_factor=0.5"],
        "model.partial_rotary_factor 0.5 (command line) does not go with model.position_embedding",
    ),
    (
        ["model.partial_rotary_factor=0.2"],
        "model.partial_rotary_factor 0.2 (command line) of heads of width 16 is 3 channels; rope",
    ),
    ([SLIDING], "names layers with a window, but there is none: model.sliding_window null (default)"),
    (
        ["model.sliding_window=9", "model.layer_types=[full_attention]"],
        "model.sliding_window 9 (command line) has no effect, as model.layer_types",
    ),
    (
        ["model.sliding_rope_theta=100"],
        "model.sliding_rope_theta 100.0 (command line) has no effect with model.sliding_window null",
    ),
    (
        ["model.qk_norm=full", "model.key_shift=0.5"],
        'model.qk_norm "full" (command line) does not go with model.key_shift 0.5 (command line)',
    ),
    (
        ["model.norm_weight=false", "model.norm_weight_offset=1"],
        "model.norm_weight_offset 1.0 (command line) has no effect with model.norm_weight false",
    ),
]


@pytest.mark.parametrize(("overrides", "says"), WRONG, ids=[" ".join(each) for each, _ in WRONG])
def test_one_mistake_is_named_once(overrides: list[str], says: str, base: str, refused: Refused) -> None:
    lines = refused(base, *overrides).splitlines()
    assert lines[0] == "c.yaml: 1 mistake" and says in lines[1]


def test_the_text_has_the_values() -> None:
    (found,) = contradictions(Model(partial_rotary_factor=0.1, head_dim=10))
    assert found.text(Model(partial_rotary_factor=0.1)).startswith("model.partial_rotary_factor 0.1 of heads")
    assert list(contradictions(shape(**SMALL))) == []
