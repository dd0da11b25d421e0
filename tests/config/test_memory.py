"""Bytes of a parameter and of its optimizer state, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from llmkit.config.ema_section import Ema
from llmkit.config.memory import (
    checkpoint_bytes,
    kept_tensors,
    mean_moments,
    parameter_bytes,
    show_bytes,
)
from llmkit.config.optimizer_section import Optimizer
from llmkit.precision import PRECISIONS
from llmkit.registry import register
from tests.examples.project import forgotten
from tests.shapes import LLAMA_STYLE

SHAPE = replace(LLAMA_STYLE, hidden_size=768, intermediate_size=3072, num_hidden_layers=12)
N = SHAPE.num_parameters
BF16 = PRECISIONS["bf16"]


@pytest.mark.parametrize(("moments", "fp32", "bf16"), [(2, (4, 4, 8), (2, 4, 12)), (1, (4, 4, 4), (2, 4, 8))])
def test_bytes_of_a_parameter(moments: int, fp32: tuple[int, ...], bf16: tuple[int, ...]) -> None:
    assert parameter_bytes(PRECISIONS["fp32"], moments) == fp32
    assert parameter_bytes(BF16, moments) == bf16
    assert checkpoint_bytes(moments) == 4 + fp32[2]


def test_each_group_keeps_the_moments_of_its_optimizer() -> None:
    with forgotten():

        @register("optimizer", "three-states")
        class Three:
            states = ("a", "b", "c")

        own = Optimizer().model_copy(update={"name": "three-states"})
        assert mean_moments(SHAPE.tensors, own) == 3.0
    assert mean_moments(SHAPE.tensors, Optimizer()) == 2.0
    hidden = sum(math.prod(each.shape) for each in SHAPE.tensors if each.hidden)
    assert mean_moments(SHAPE.tensors, Optimizer(name="muon")) * N == pytest.approx(2 * N - hidden)
    attention = {"params": ["*.attention.*"], "name": "adamw"}
    groups = Optimizer.model_validate({"name": "muon", "groups": [attention]})
    mlp = 12 * 3 * 768 * 3072
    assert mean_moments(SHAPE.tensors, groups) * N == pytest.approx(2 * N - mlp)


def test_a_moving_average_is_one_more_tensor_of_fp32() -> None:
    muon = Optimizer(name="muon")
    for ema, more in ((Ema(), 0), (Ema(decay=0.9), 1), (Ema(half_life_tokens=10**6), 1)):
        assert kept_tensors(SHAPE.tensors, muon, ema) == mean_moments(SHAPE.tensors, muon) + more


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (2**20, "1.0 MiB"), (79163224064, "73.7 GiB"), (2e13, "18,626.5 GiB")],
)
def test_sizes_are_for_people(size: float, text: str) -> None:
    assert show_bytes(size) == text
