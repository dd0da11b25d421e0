"""Muon against PyTorch's own; its arithmetic: tests/kernels/test_muon.py."""

from __future__ import annotations

import pytest
import torch

from llmkit.optim.exchange import MatrixExchange, shards_of
from llmkit.optim.muon import Muon
from llmkit.parallel.mesh import Axis
from llmkit.parallel.slices import ParameterSlice, full_box


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def muon(matrices, *, dtype=torch.float32, **settings) -> Muon:
    """Muon on one rank over (parameter, rows of each matrix in it)."""
    shards, shapes = {}, {}
    for i, (parameter, rows) in enumerate(matrices):
        parts = []
        for start, stop in rows:
            shape = (stop - start, parameter.shape[1])
            parts.append(ParameterSlice(f"{i}.{start}", shape, full_box(shape), start, stop))
        shapes |= {part.name: part.shape for part in parts}
        shards[parameter] = list(shards_of(parts, 0, parameter.numel()))
    held = [shard for each in shards.values() for shard in each]
    exchange = MatrixExchange(held, shapes, Axis(), device=torch.device("cpu"), dtype=dtype)
    return Muon([{"params": list(shards), **settings}], shards, exchange)


def test_ten_steps_equal_pytorchs_muon():
    """PyTorch's takes separate matrices and iterates in bf16: ours is given the same dtype."""
    ours = [torch.nn.Parameter(random(24 + 16 + 16, 24)), torch.nn.Parameter(random(24, 56, seed=1))]
    rows = [[(0, 24), (24, 40), (40, 56)], [(0, 24)]]
    split = [p.detach()[a:b].clone() for p, cuts in zip(ours, rows, strict=True) for a, b in cuts]
    theirs = [torch.nn.Parameter(matrix.clone()) for matrix in split]
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    mine = muon(list(zip(ours, rows, strict=True)), dtype=torch.bfloat16, **settings)
    reference = torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings)
    for step in range(10):
        gradients = [random(*p.shape, seed=10 * step + i) for i, p in enumerate(ours)]
        for parameter, gradient in zip(ours, gradients, strict=True):
            parameter.grad = gradient
        parts = [g[a:b] for g, cuts in zip(gradients, rows, strict=True) for a, b in cuts]
        for parameter, gradient in zip(theirs, parts, strict=True):
            parameter.grad = gradient.clone()
        mine.step()
        reference.step()
    found = [p[a:b] for p, cuts in zip(ours, rows, strict=True) for a, b in cuts]
    for ours_part, theirs_part, start in zip(found, theirs, split, strict=True):
        moved = (theirs_part - start).norm()
        assert moved > 0.01 * start.norm()
        assert (ours_part - theirs_part).norm() <= 2e-2 * moved


def test_a_skipped_step_changes_nothing():
    parameter = torch.nn.Parameter(random(8, 8))
    optimizer = muon([(parameter, [(0, 8)])], lr=0.1, momentum=0.9, weight_decay=0.1)
    parameter.grad = random(8, 8, seed=1)
    optimizer.step()
    state = optimizer.state[parameter]
    before = parameter.detach().clone(), state["momentum_buffer"].clone(), state["step"].clone()
    parameter.grad = torch.full((8, 8), float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    for old, new in zip(before, (parameter, state["momentum_buffer"], state["step"]), strict=True):
        assert torch.equal(old, new)


def test_an_update_is_as_large_as_one_of_adamw():
    parameter = torch.nn.Parameter(torch.zeros(64, 128))
    optimizer = muon([(parameter, [(0, 64)])], lr=1.0, momentum=0.9, weight_decay=0.0)
    parameter.grad = random(64, 128)
    optimizer.step()
    assert parameter.detach().square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_groups_have_rates_momentum_and_decay_of_their_own():
    """Each moves as it does in an optimizer of its own; the second group has two shapes."""
    values = [random(8, 12, seed=i) for i in range(2)] + [random(6, 4, seed=2)]
    settings = [
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.3},
    ]
    together, apart = ([torch.nn.Parameter(value.clone()) for value in values] for _ in range(2))
    shards = muon([(p, [(0, p.shape[0])]) for p in together], **settings[0])
    groups = [{"params": p, **each} for p, each in zip((together[:1], together[1:]), settings, strict=True)]
    optimizers = [Muon(groups, dict(zip(together, shards.shards, strict=True)), shards.exchange)]
    for parameters, each in zip((apart[:1], apart[1:]), settings, strict=True):
        optimizers.append(muon([(p, [(0, p.shape[0])]) for p in parameters], **each))
    for step in range(3):
        for i, (a, b) in enumerate(zip(together, apart, strict=True)):
            a.grad = random(*a.shape, seed=10 * step + i)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, before in zip(together, apart, values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not torch.equal(a, before)


def test_gradients_are_divided_by_the_scale_and_weights_rounded_in_the_step():
    found = []
    for scale, factor in ((None, 0.25), (torch.tensor(4.0), 1.0)):
        parameter = torch.nn.Parameter(random(24, 8))
        optimizer = muon([(parameter, [(0, 16), (16, 24)])], lr=0.1, momentum=0.9, weight_decay=0.1)
        weight = torch.zeros(24, 8, dtype=torch.bfloat16)
        optimizer.grad_scale, optimizer.rounded = scale, {parameter: weight}
        for seed in (1, 2):
            parameter.grad = factor * random(24, 8, seed=seed)
            optimizer.step()
        assert torch.equal(weight, parameter.detach().bfloat16())
        found.append((parameter.detach(), optimizer.state[parameter]["momentum_buffer"]))
    torch.testing.assert_close(found[0], found[1])
