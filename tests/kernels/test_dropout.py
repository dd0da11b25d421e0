"""Dropout by key: the right share, nothing else than the key decides, and other keys choose otherwise."""

from __future__ import annotations

import pytest
import torch

from llmkit.kernels.compiler import compiler_missing
from llmkit.kernels.dropout import dropout, dropout_add


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_the_right_share_is_dropped_and_the_rest_scaled(probability):
    x = torch.full((100, 2000), 3.0)
    out = dropout(x, probability, torch.tensor(7))
    assert float((out == 0).double().mean()) == pytest.approx(probability, abs=0.003)
    assert out.max().item() == pytest.approx(3.0 / (1.0 - probability))
    columns = (out == 0).double().mean(0)
    assert float(columns.std()) == pytest.approx((probability * (1 - probability) / 100) ** 0.5, rel=0.05)


def test_the_key_alone_decides():
    x = torch.ones(64, 64)
    first = dropout(x, 0.5, torch.tensor(1 << 61))
    torch.manual_seed(99)
    assert torch.equal(first, dropout(x, 0.5, torch.tensor(1 << 61)))
    other = dropout(x, 0.5, torch.tensor((1 << 61) + 1))
    assert float((first == other).double().mean()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.skipif(compiler_missing(torch.device("cpu")) is not None, reason="no compiler here")
def test_compiled_code_chooses_the_same():
    """Positions are constants to the compiler, which reckons with them without wrapping."""
    x, key = torch.randn(3, 20, 48), torch.tensor((1 << 62) - 5)
    compiled = torch.compile(dropout, dynamic=False)
    torch.testing.assert_close(compiled(x, 0.3, key), dropout(x, 0.3, key))


def test_the_branch_is_dropped_and_the_stream_is_not():
    branch, x = torch.randn(2, 40, 60).unbind()
    key = torch.tensor(11)
    assert torch.equal(dropout_add(branch, x, 0.4, key), x + dropout(branch, 0.4, key))
    torch.manual_seed(3)
    wanted = x + torch.nn.functional.dropout(branch, 0.4)
    torch.manual_seed(3)
    assert torch.equal(dropout_add(branch, x, 0.4), wanted)
    assert torch.equal(dropout_add(branch, x, 0.0), x + branch)
