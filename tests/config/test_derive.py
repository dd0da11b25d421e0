"""Values that follow from the settings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.derive import default_intermediate_size, derive, resolved_model
from llmkit.config.schema import Config, Data, Model, Parallel, Source, Tokenizer, Train


def config(
    model: Model | None = None, train: Train | None = None, parallel: Parallel | None = None, **tokenizer: Any
) -> Config:
    data = Data(
        sources=[Source(type="stdlib")],
        sequence_length=128,
        tokenizer=Tokenizer(**tokenizer),
    )
    return Config(data=data, model=model or Model(), train=train or Train(), parallel=parallel or Parallel())


def derived(*args: Config, **more: Any) -> dict[str, int | str]:
    return {value.name: value.value for value in derive(*args, **more)}


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
    assert derived(config(type="file", path="x"))["parameters"] == "known once the tokenizer is loaded"
    assert derived(config(type="file", path="x"), vocab_size=500)["vocab_size"] == 500


def test_a_model_may_know_more_tokens_than_the_tokenizer() -> None:
    assert resolved_model(config(Model(vocab_size=600)), 500).vocab_size == 600


def test_a_width_that_the_heads_do_not_divide_makes_no_model() -> None:
    with pytest.raises(ValueError, match="cannot be shared out to 12 heads"):
        resolved_model(config(Model(hidden_size=100)), 10)


def test_the_batch_is_shared_out() -> None:
    train = Train(global_batch_size=32, micro_batch_size=4)
    values = derived(config(train=train), data_parallel_size=2)
    assert values["accumulation_steps"] == 4
    assert values["tokens_per_step"] == 32 * 128


def test_an_automatic_micro_batch_is_said_to_come_later() -> None:
    assert derived(config())["micro_batch_size"] == "chosen at start"
    assert derived(config(), micro_batch_size=8)["accumulation_steps"] == 4


def test_the_settings_may_say_over_how_many_ranks() -> None:
    four = config(parallel=Parallel(world_size=8, tensor_parallel_size=2))
    assert derived(four, micro_batch_size=2)["accumulation_steps"] == 4
    assert derived(four, micro_batch_size=2, data_parallel_size=16)["accumulation_steps"] == 1


def test_rows_that_only_fill_are_told() -> None:
    values = derived(config(), data_parallel_size=3, micro_batch_size=11)
    assert (values["accumulation_steps"], values["wasted_rows"]) == (1, 1)
    assert "wasted_rows" not in derived(config(), data_parallel_size=2)


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(1, 5), (4, 16)])
def test_micro_batches_that_do_not_fit_have_no_number(ranks: int, micro_batch_size: int) -> None:
    with pytest.raises(ValueError, match="do not divide"):
        derive(config(), data_parallel_size=ranks, micro_batch_size=micro_batch_size)


def test_without_a_number_of_processes_the_fewest_that_fit_are_taken() -> None:
    ten = config(train=Train(global_batch_size=10, micro_batch_size=3))
    (steps,) = [value for value in derive(ten) if value.name == "accumulation_steps"]
    assert steps.value == 1
    assert "4 data-parallel ranks, the fewest" in steps.how


def test_every_value_says_how_it_came_about() -> None:
    assert all(value.how for value in derive(config()))
