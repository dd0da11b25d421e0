"""The names and shapes of the tensors that a shape says are those of the model which is built."""

from __future__ import annotations

import random
from itertools import product
from typing import Any

import pytest

from llmkit.config.parameters import named_parameters
from tests.config.test_shape import SMALL, shape

SETTINGS: dict[str, tuple[Any, ...]] = {
    "mlp": ("swiglu", "relu2", "geglu"),
    "norm": ("rmsnorm", "layernorm"),
    "norm_weight": (True, False),
    "norm_placement": ("pre", "post", "both"),
    "embedding_norm": (False, True),
    "value_embeddings": (False, True),
    "bigram_embedding": (None, 7),
    "residual_scalars": (False, True),
    "position_embedding": ("rope", "learned"),
    "attention_bias": (False, True),
    "attention_output_bias": (None, False, True),
    "qk_norm": (False, True, "full"),
    "tie_word_embeddings": (True, False),
}
"""Every setting that adds tensors, with its values."""
SAMPLE = 64
"""Of their 82,944 combinations; of any three settings nearly all combinations are among them."""


def test_they_are_those_of_the_model_in_any_combination() -> None:
    torch = pytest.importorskip("torch")
    gpt = pytest.importorskip("llmkit.model.gpt")
    for values in random.Random(0).sample(list(product(*SETTINGS.values())), SAMPLE):
        settings = dict(zip(SETTINGS, values, strict=True))
        settings["mlp_bias"] = settings["attention_bias"]
        wanted = shape(num_key_value_heads=2, head_dim=6, **SMALL, **settings)
        with torch.device("meta"):
            model = gpt.GPT(wanted, seed=None)
        built = [part for parts in model.parameter_slices().values() for part in parts]
        assert list(named_parameters(wanted)) == [(each.name, each.shape) for each in built], settings
        hidden, tensors = model.hidden_matrices(), {tensor.name: tensor for tensor in wanted.tensors}
        for stored, parts in model.parameter_slices().items():
            assert {tensors[part.name].hidden for part in parts} == {stored in hidden}, (stored, settings)
            assert len({tensors[part.name].stored_in for part in parts}) == 1, (stored, settings)
        assert len({tensor.stored_in for tensor in tensors.values()}) == len(model.parameter_slices())


def test_a_few_by_hand() -> None:
    found = shape(num_key_value_heads=2, intermediate_size=70, **SMALL).parameters()
    assert found["embedding.weight"] == (100, 32)
    assert found["blocks.1.attention.k_proj.weight"] == (16, 32)
    assert found["blocks.0.mlp.gate_proj.weight"] == (70, 32)
    assert found["blocks.0.mlp.down_proj.weight"] == (32, 70)
    assert found["norm.weight"] == (32,)
    assert "head.weight" not in found and "positions.weight" not in found
