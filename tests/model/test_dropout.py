"""Dropout by key: the right share, nothing else than the key decides, and other keys choose otherwise."""

from __future__ import annotations

import pytest
import torch

from llmkit.config.shape import ModelShape
from llmkit.kernels.compiler import compiler_missing
from llmkit.model.dropout import DropoutKeys, dropout, group_dropout
from llmkit.parallel.mesh import TensorParallel
from tests.shapes import GPT2_STYLE, LLAMA_STYLE


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_the_right_share_is_dropped_and_the_rest_scaled(probability):
    x = torch.full((100, 2000), 3.0)
    out = dropout(x, probability, True, torch.tensor(7))
    assert float((out == 0).double().mean()) == pytest.approx(probability, abs=0.003)
    assert out.max().item() == pytest.approx(3.0 / (1.0 - probability))
    columns = (out == 0).double().mean(0)
    assert float(columns.std()) == pytest.approx((probability * (1 - probability) / 100) ** 0.5, rel=0.05)


def test_the_key_alone_decides():
    x = torch.ones(64, 64)
    first = dropout(x, 0.5, True, torch.tensor(1 << 61))
    torch.manual_seed(99)
    assert torch.equal(first, dropout(x, 0.5, True, torch.tensor(1 << 61)))
    other = dropout(x, 0.5, True, torch.tensor((1 << 61) + 1))
    assert float((first == other).double().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.skipif(compiler_missing(torch.device("cpu")) is not None, reason="no compiler here")
def test_compiled_code_chooses_the_same():
    """Positions are constants to the compiler, which reckons with them without wrapping."""
    x, key = torch.randn(3, 20, 48), torch.tensor((1 << 62) - 5)
    compiled = torch.compile(dropout, dynamic=False)
    torch.testing.assert_close(compiled(x, 0.3, True, key), dropout(x, 0.3, True, key))


def keys_of(shape: ModelShape, size: int, sequence_parallel: bool = False, training: bool = True):
    tp = TensorParallel(rank=0, size=size, sequence_parallel=sequence_parallel)
    with group_dropout(shape, tp, training, torch.device("cpu")) as keys:
        return keys


def test_generators_are_left_alone_where_nothing_depends_on_it():
    for keys in (
        lambda: keys_of(GPT2_STYLE, 1),
        lambda: keys_of(LLAMA_STYLE, 4, sequence_parallel=True),
        lambda: keys_of(GPT2_STYLE, 2, training=False),
    ):
        torch.manual_seed(4)
        none = [None] * GPT2_STYLE.num_hidden_layers
        assert keys() == DropoutKeys(None, none, none)
        found = torch.rand(3)
        torch.manual_seed(4)
        assert torch.equal(found, torch.rand(3))
