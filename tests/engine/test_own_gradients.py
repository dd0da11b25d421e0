"""The size of each rank's own gradient against autograd's; what becomes of a NaN: loop/test_checks.py."""

from __future__ import annotations

import math

import pytest
import torch

from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.native import NativeEngine
from llmkit.engine.own_gradients import OwnGradients
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import ExpertParallel, Mesh
from llmkit.parity.subjects import MODELS
from llmkit.precision import PRECISIONS


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
    own.add_squares(torch.tensor(1e30))
    own.add(torch.tensor([3e25]))
    torch.testing.assert_close(own.by_rank()[1].item(), 9e50, rtol=1e-5, atol=0)  # type: ignore[index]
    own.add(torch.tensor([1.0, math.nan]))
    assert math.isnan(own.by_rank()[1])  # type: ignore[index]
    own.start()
    assert own.by_rank() is None, "a new step"


def test_one_rank_has_nobody_to_be_told_from() -> None:
    own, weight = OwnGradients(Mesh()), torch.ones(2, requires_grad=True)
    own.watch([weight])
    weight.sum().backward()
    assert own.by_rank() is None


@pytest.mark.parametrize("world_size", [2, 4])
def test_experts_that_are_dealt_out_say_nothing_of_the_rank_that_holds_them(world_size: int) -> None:
    """They compute with others' tokens. Of 2 ranks each expert is on one, of 4 on two."""
    mesh = Mesh(0, world_size, {"expert": 2})
    model = GPT(MODELS["two-experts"], experts=ExpertParallel(0, 2))
    engine = NativeEngine(
        model, Optimizer(), precision=PRECISIONS["fp32"], gradient_clipping=1.0, mesh=mesh, zero_stage=1
    )
    assert not any(".experts." in name for name in engine.alone)
    watched: dict[bool, bool] = {}
    for part in engine.masters.parts:  # type: ignore[attr-defined]
        names = [each.parameter for held in part.held for each in held.fragments]
        of_experts = all(".experts." in name for name in names)
        if part.buckets is not None:
            watched[of_experts] = part.buckets.before_sending == engine.own_gradients.add
    assert watched == ({False: True} if world_size == 2 else {False: True, True: False})
