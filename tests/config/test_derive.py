"""Rules by which sizes of the model follow from the settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.derive import default_intermediate_size, divisors, resolved_model
from llmkit.config.model_section import Model
from llmkit.config.schema import Config, Data, Source, Tokenizer


def config(model: Model | None = None, **tokenizer: Any) -> Config:
    data = Data(
        sources=[Source(type="stdlib")],
        sequence_length=128,
        tokenizer=Tokenizer(**tokenizer),
    )
    return Config(data=data, model=model or Model())


def test_defaults_are_filled_in() -> None:
    shape = resolved_model(config(), 1000)
    assert (shape.num_key_value_heads, shape.head_dim, shape.intermediate_size) == (12, 64, 2048)
    assert (shape.vocab_size, shape.padded_vocab_size, shape.max_position_embeddings) == (1000, 1024, 128)


def test_given_values_stay() -> None:
    model = Model(num_key_value_heads=4, head_dim=80, intermediate_size=999, max_position_embeddings=256)
    shape = resolved_model(config(model), 1000)
    assert (shape.num_key_value_heads, shape.head_dim, shape.intermediate_size) == (4, 80, 999)
    assert shape.max_position_embeddings == 256


@given(st.integers(1, 20_000))
def test_the_mlp_of_swiglu_is_8_3_of_the_width_rounded_up_to_64(width: int) -> None:
    inner = default_intermediate_size(config(Model(hidden_size=width)))
    assert inner % 64 == 0
    assert 0 <= 3 * inner - 8 * width < 3 * 64


def test_the_mlp_of_gelu_is_4_times_the_width() -> None:
    assert default_intermediate_size(config(Model(hidden_size=100, mlp="gelu"))) == 400


@pytest.mark.parametrize(
    ("tokenizer", "size"),
    [({"type": "bytes"}, 257), ({"type": "bpe"}, 4096), ({"type": "bpe", "vocab_size": 300}, 300)],
)
def test_the_vocabulary_is_known_before_the_tokenizer_is_loaded(tokenizer: dict[str, Any], size: int) -> None:
    assert resolved_model(config(**tokenizer)).vocab_size == size


def test_the_vocabulary_of_a_file_is_not_known_before() -> None:
    with pytest.raises(ValueError, match="known once it is loaded"):
        resolved_model(config(type="file", path="x"))


def test_a_model_may_know_more_tokens_than_the_tokenizer() -> None:
    assert resolved_model(config(Model(vocab_size=600)), 500).vocab_size == 600


def test_a_width_that_the_heads_do_not_divide_makes_no_model() -> None:
    with pytest.raises(ValueError, match="cannot be shared out to 12 heads"):
        resolved_model(config(Model(hidden_size=100)), 10)


@given(number=st.integers(1, 2000))
def test_divisors_are_all_that_divide(number: int) -> None:
    assert divisors(number) == [n for n in range(1, number + 1) if number % n == 0]


def test_divisors_of_a_large_number_are_found_at_once() -> None:
    assert len(divisors(10**12)) == 13 * 13
