"""Optimizers behind flat tensors: what DeepSpeed does with its optimizer, done by hand."""

from __future__ import annotations

import torch
from torch import nn

from llmkit.config.groups import Group
from llmkit.config.optimizer_section import Optimizer
from llmkit.engine.flat import FlatOptimizer
from llmkit.optim.build import build_simple, set_values
from llmkit.optim.schedule import StepValues


def made() -> tuple[FlatOptimizer, list[torch.Tensor]]:
    """Two groups of parameters, which flat tensors have replaced."""
    optimizer = FlatOptimizer(
        [[nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))], [nn.Parameter(torch.ones(4))]]
    )
    flats = [torch.ones(5, requires_grad=True), torch.ones(4, requires_grad=True)]
    for group, flat in zip(optimizer.param_groups, flats, strict=True):
        group["params"] = [flat]
    group = Group("adamw", ("w",), 1.0, 0.5, betas=(0.9, 0.95), eps=1e-8, momentum=0.9)
    optimizer.bind({flat: build_simple("adamw", [(group, [flat])], Optimizer()) for flat in flats})
    return optimizer, flats


def test_each_flat_tensor_is_updated_by_its_optimizer_with_the_values_of_the_step():
    optimizer, flats = made()
    set_values(optimizer.optimizers.values(), StepValues(0.25, weight_decay=0.0))
    for flat in flats:
        flat.grad = torch.full_like(flat, 3.0)
    optimizer.step()
    for flat in flats:
        torch.testing.assert_close(flat.detach(), torch.full_like(flat, 0.75))
        assert set(optimizer.state[flat]) == {"step", "exp_avg", "exp_avg_sq"}


def test_only_those_in_the_groups_now_are_updated():
    """ZeRO-2 and 3 call step for one group at a time, with the others empty or away."""
    optimizer, flats = made()
    for flat in flats:
        flat.grad = torch.ones_like(flat)
    groups, optimizer.param_groups = optimizer.param_groups, [optimizer.param_groups[1]]
    optimizer.step()
    optimizer.param_groups = groups
    assert flats[0].equal(torch.ones(5)) and not flats[1].equal(torch.ones(4))
