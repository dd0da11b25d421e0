"""The size of each rank's own gradient against autograd's; what becomes of a NaN: loop/test_checks.py."""

from __future__ import annotations

import math

import torch

from llmkit.engine.own_gradients import OwnGradients
from llmkit.parallel.mesh import Mesh


def test_the_squares_of_all_gradients_stand_in_the_place_of_the_rank() -> None:
    weights = [torch.randn(5, 3, requires_grad=True), torch.randn(7, requires_grad=True)]
    own = OwnGradients(Mesh(1, 3))
    own.watch(weights)
    loss = sum((weight**3).sum() for weight in weights)
    torch.autograd.backward(loss)
    found = own.by_rank()
    assert found is not None and found[[0, 2]].tolist() == [0.0, 0.0]
    expected = sum(float((3 * weight.detach().double() ** 2).square().sum()) for weight in weights)
    torch.testing.assert_close(found[1].item(), expected, rtol=1e-5, atol=0)
    own.add(torch.tensor([1.0, math.nan]))
    assert math.isnan(own.by_rank()[1])  # type: ignore[index]
    own.start()
    assert own.by_rank() is None, "a new step"


def test_one_rank_has_nobody_to_be_told_from() -> None:
    own, weight = OwnGradients(Mesh()), torch.ones(2, requires_grad=True)
    own.watch([weight])
    weight.sum().backward()
    assert own.by_rank() is None
