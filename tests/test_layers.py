"""The layers that models of one's own can be sharded with."""

from __future__ import annotations

import pytest
import torch

from llmkit import layers
from llmkit.errors import UserError
from llmkit.model.layers import Layer
from llmkit.parallel.mesh import TensorParallel


def test_each_name_has_a_docstring_and_is_of_the_package():
    for name in layers.__all__:
        each = getattr(layers, name)
        assert each.__doc__ and each.__module__.startswith("llmkit."), name


def test_a_pair_of_them_is_the_two_linear_layers():
    tp = TensorParallel()
    up, down = layers.FusedColumnLinear(4, {"up": 6}, True, tp), layers.RowLinear(6, 3, True, tp)
    for parameter in (*up.parameters(), *down.parameters()):
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 5, 4)
    (middle,) = up(x)
    wanted = torch.nn.functional.linear(x @ up.weight.T + up.bias, down.weight, down.bias)
    assert torch.allclose(down(middle), wanted, atol=1e-5)


def test_sizes_that_the_ranks_do_not_divide_are_named():
    tp = TensorParallel(size=4)
    with pytest.raises(UserError, match="output width of up, 6, is not divisible by the 4 tensor-parallel"):
        layers.FusedColumnLinear(8, {"up": 6}, False, tp)
    with pytest.raises(UserError, match="input width of a RowLinear, 6, is not divisible by the 4"):
        layers.RowLinear(6, 8, False, tp)


def test_a_vocabulary_may_be_of_any_size():
    parts = [layers.Embedding(11, 2, TensorParallel(rank=rank, size=4)) for rank in range(4)]
    boxes = [part.parameter_slices("e")["weight"][0].box for part in parts]
    assert [box[0] for box in boxes] == [(0, 3), (3, 6), (6, 9), (9, 11)]
    assert all(isinstance(part, Layer) and part.weight.shape == (3, 2) for part in parts)
