"""The shape of a model: its number of weights, and its way through JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import MISSING, fields
from typing import Any

import pytest

from llmkit.config.derive import resolved_model
from llmkit.config.model_section import Model, RopeScaling
from llmkit.config.schema import Config, Data, Source
from llmkit.config.shape import ModelShape
from llmkit.errors import UserError


def shape(vocab_size: int = 100, sequence_length: int = 16, **model: Any) -> ModelShape:
    data = Data(sources=[Source(type="stdlib")], sequence_length=sequence_length)
    return resolved_model(Config(data=data, model=Model(**model)), vocab_size)


SMALL: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_gpt2_has_its_published_number_of_weights() -> None:
    gpt2 = shape(
        50257,
        1024,
        mlp="gelu",
        norm="layernorm",
        position_embedding="learned",
        attention_bias=True,
        mlp_bias=True,
    )
    assert gpt2.num_parameters == 124_439_808
    assert gpt2.num_added_parameters == 1024 * 768
    assert gpt2.padded_vocab_size == 50304


def test_llama_2_7b_has_its_published_number_of_weights() -> None:
    llama = shape(
        32000,
        4096,
        hidden_size=4096,
        num_hidden_layers=32,
        num_attention_heads=32,
        intermediate_size=11008,
        tie_word_embeddings=False,
    )
    assert llama.num_parameters == 6_738_415_616


def test_qwen_3_0_6b_has_its_published_number_of_weights() -> None:
    qwen = shape(
        151936,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        qk_norm=True,
    )
    assert qwen.num_parameters == 596_049_920


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mlp": "gelu", "norm": "layernorm", "position_embedding": "learned"},
        {"attention_bias": True, "mlp_bias": True},
        {"mlp": "gelu", "mlp_bias": True, "tie_word_embeddings": False},
        {"num_key_value_heads": 2, "qk_norm": True, "head_dim": 6, "attention_bias": True},
    ],
)
def test_the_number_is_that_of_the_model_which_is_built(settings: dict[str, Any]) -> None:
    gpt = pytest.importorskip("llmkit.model.gpt")
    wanted = shape(vocab_pad_multiple=1, **SMALL, **settings)
    model = gpt.GPT(wanted)
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted.num_parameters


def test_padding_of_the_vocabulary_is_not_counted() -> None:
    padded, exact = shape(**SMALL), shape(vocab_pad_multiple=1, **SMALL)
    assert (padded.padded_vocab_size, exact.padded_vocab_size) == (128, 100)
    assert padded.num_parameters == exact.num_parameters


def test_every_setting_of_the_model_is_a_field() -> None:
    fields = {field.name for field in dataclasses.fields(ModelShape)}
    assert fields == set(Model.model_fields) - {"type"} | {"padded_vocab_size"}


def test_through_json_and_back() -> None:
    scaling = RopeScaling(rope_type="yarn", factor=2.5, original_max_position_embeddings=8)
    types = ("sliding_attention", "full_attention")
    wanted = shape(**SMALL, sliding_window=7, layer_types=types, rope_scaling=scaling, qk_norm="full")
    assert ModelShape.from_dict(json.loads(json.dumps(wanted.to_dict()))) == wanted


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"experts": 8}, "does not know: 'experts'"),
        ({"hidden_size": None}, "hidden_size = None"),
        ({"hidden_size": "64"}, "hidden_size = '64'"),
        ({"hidden_size": True}, "hidden_size = True"),
        ({"hidden_size": 64.0}, "hidden_size = 64.0"),
        ({"hidden_size": 0}, "hidden_size = 0, which is not valid: Input should be greater"),
        ({"num_hidden_layers": -3}, "num_hidden_layers = -3"),
        ({"mlp": "relu"}, "mlp = 'relu'"),
        ({"mlp": ["gelu"]}, "mlp = "),
        ({"norm_eps": float("nan")}, "norm_eps = nan"),
        ({"norm_eps": 0}, "norm_eps = 0, which is not valid: Input should be greater than 0"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0"),
        ({"attention_dropout": 1.0}, "attention_dropout = 1.0"),
        ({"sliding_window": 0}, "sliding_window = 0"),
        ({"num_key_value_heads": None}, "num_key_value_heads = None"),
        ({"vocab_size": "auto"}, "vocab_size = 'auto'"),
        ({"padded_vocab_size": 128.0}, "padded_vocab_size = 128.0"),
        ({"qk_norm": 1}, "qk_norm = 1"),
        ({"sliding_window": "all"}, "sliding_window = 'all'"),
        ({"sliding_window": 4, "layer_types": ["local"]}, "layer_types = "),
        ({"layer_types": ["sliding_attention"]}, "names layers with a window, but there is none"),
        ({"rope_scaling": {"rope_type": "ntk"}}, "rope_scaling = {'rope_type': 'ntk'}, which is not valid"),
        ({"rope_scaling": 2.0}, "rope_scaling = 2.0"),
        ({"rope_scaling": {"rope_type": "linear"}}, 'rope_type "linear" needs model.rope_scaling.factor'),
        ({"num_key_value_heads": 3}, "not divisible by"),
        ({"head_dim": 7}, "is odd"),
        ({"padded_vocab_size": 99}, "smaller than vocab_size 100"),
    ],
)
def test_a_stored_shape_that_is_not_right_is_refused(change: dict[str, object], what: str) -> None:
    with pytest.raises(UserError, match=what.replace("(", r"\(")):
        ModelShape.from_dict(shape(**SMALL).to_dict() | change)


def test_a_stored_shape_without_a_size_is_refused() -> None:
    stored = shape(**SMALL).to_dict()
    del stored["hidden_size"]
    with pytest.raises(UserError, match=r"step-2 \(llmkit 0\.9\): its model has no value for: 'hidden_size'"):
        ModelShape.from_dict(stored, "step-2 (llmkit 0.9)")


@pytest.mark.parametrize(("old", "new"), [(True, "scaled"), (False, "normal")])
def test_a_stored_shape_is_read_under_the_names_of_today(old: bool, new: str) -> None:
    stored = shape(**SMALL).to_dict()
    del stored["residual_init"]
    assert ModelShape.from_dict(stored | {"scaled_residual_init": old}).residual_init == new


def test_value_embeddings_are_in_every_second_layer_up_to_the_last() -> None:
    for layers, wanted in ((4, [1, 3]), (3, [0, 2]), (1, [0])):
        found = shape(**SMALL | {"num_hidden_layers": layers}, value_embeddings=True)
        assert [each for each in range(layers) if found.has_value_embedding(each)] == wanted
        assert found.num_added_parameters == len(wanted) * 100 * 32


def test_a_pattern_of_windows_is_repeated_up_to_the_last_layer() -> None:
    types = ("sliding_attention", "sliding_attention", "full_attention")
    found = shape(**SMALL | {"num_hidden_layers": 5}, sliding_window=7, layer_types=types)
    assert [found.window(layer) for layer in range(5)] == [7, 7, None, 7, 7]
    assert shape(**SMALL, sliding_window=7).window(1) == 7 and shape(**SMALL).window(1) is None


def test_what_a_stored_shape_does_not_have_yet_is_the_default_of_the_settings() -> None:
    with_default = [field for field in fields(ModelShape) if field.default is not MISSING]
    assert len(with_default) == 37
    for field in with_default:
        assert field.default == Model.model_fields[field.name].default
        stored = shape(**SMALL).to_dict()
        del stored[field.name]
        assert getattr(ModelShape.from_dict(stored), field.name) == field.default
