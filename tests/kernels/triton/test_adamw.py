"""Triton's AdamW against PyTorch's in float64: many tensors, clipping, skipped steps, rounded weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.kernels.float64 import relative_error

SIZES = [(3, 7), (5000,), (1,), (0,), (64, 33)]
OPTIONS = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8}


def parameters(device: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=generator) for size in SIZES]
    return [nn.Parameter(each.to(device, dtype)) for each in made]


def groups(made: list[nn.Parameter]) -> list[dict]:
    own = {"lr": 0.05, "betas": (0.8, 0.9), "eps": 1e-6}
    return [{"params": made[:2], "weight_decay": 0.1, **own}, {"params": made[2:], "weight_decay": 0.0}]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(size, generator=generator) * 10.0 ** (step - 3) for size in SIZES]


def run(optimizer: torch.optim.Optimizer, made: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for parameter, gradient in zip(made, gradients(step)):
            parameter.grad = gradient.to(parameter)  # somewhere else in memory at every step
        optimizer.grad_scale = torch.tensor(1.0 + step, device=made[0].device)
        optimizer.found_inf = torch.tensor(float(step == 2), device=made[0].device)
        if step == 2:
            made[0].grad.fill_(float("nan"))
        for group in optimizer.param_groups:  # as a schedule does
            group["lr"], group["weight_decay"] = 0.9 * group["lr"], 0.5 * group["weight_decay"]
        optimizer.step()


@pytest.mark.parametrize("rounds", [True, False], ids=["rounded", "masters only"])
def test_steps_are_those_of_pytorch_in_float64(device, rounds):
    from llmkit.kernels.triton.adamw import adamw

    made, exact = parameters(device), parameters(device, torch.float64)
    optimizer = adamw(groups(made), **OPTIONS)
    weights = [each.detach().bfloat16() for each in made]
    if rounds:
        optimizer.rounded = dict(zip(made, weights))
    reference = torch.optim.AdamW(groups(exact), **OPTIONS, fused=True)
    run(optimizer, made, range(6))
    run(reference, exact, range(6))
    for one, other, weight in zip(made, exact, weights):
        assert relative_error(one, other) < 1e-6, f"{tuple(one.shape)}: {relative_error(one, other):.1e}"
        if rounds:
            assert relative_error(weight, other) < 8e-3, f"weight {tuple(one.shape)}"
        if one.numel() == 0:
            continue
        mine, its = optimizer.state[one], reference.state[other]
        for kind in ("exp_avg", "exp_avg_sq"):
            assert relative_error(mine[kind], its[kind]) < 1e-6, f"{kind} of {tuple(one.shape)}"
        assert float(mine["step"]) == float(its["step"]) == 5.0, f"step {mine['step']}, {its['step']}"


def test_the_first_steps_have_their_bias_correction_in_full(device):
    """With beta2 = 0.999 a correction of 1 - beta2 in fp32 would be off by 6e-5."""
    from llmkit.kernels.triton.adamw import adamw

    made = [nn.Parameter(torch.zeros(100, device=device))]
    optimizer = adamw([{"params": made, "weight_decay": 0.0}], lr=1.0, betas=(0.9, 0.999), eps=1e-12)
    made[0].grad = torch.full((100,), 0.37, device=device)
    optimizer.step()
    assert relative_error(made[0], torch.full((100,), -1.0, device=device)) < 1e-6, str(made[0][0])


def test_tensors_at_odd_addresses_and_gradients_in_another_order(device):
    from llmkit.kernels.triton.adamw import adamw

    whole = torch.randn(41, 20, device=device)
    mine = nn.Parameter(whole.view(-1)[3:803].view(40, 20))
    its = nn.Parameter(mine.detach().double())
    optimizer = adamw([{"params": [mine], "weight_decay": 0.1}], **OPTIONS)
    reference = torch.optim.AdamW([{"params": [its], "weight_decay": 0.1}], **OPTIONS)
    before = whole.clone()
    for _ in range(2):
        gradient = torch.randn(20, 40, device=device).T
        mine.grad, its.grad = gradient, gradient.double()
        optimizer.step()
        reference.step()
    assert relative_error(mine, its) < 1e-6, f"{relative_error(mine, its):.1e}"
    outside = torch.ones(820, dtype=torch.bool, device=device)
    outside[3:803] = False
    assert torch.equal(whole.view(-1)[outside], before.view(-1)[outside]), "written outside of the tensor"


def test_its_state_is_that_of_pytorch(device):
    """A checkpoint of either is read by the other."""
    from llmkit.kernels.triton.adamw import adamw

    made, others = parameters(device), parameters(device)
    run(optimizer := adamw(groups(made), **OPTIONS), made, range(2))
    run(reference := torch.optim.AdamW(groups(others), **OPTIONS, fused=True), others, range(2))
    crossed = torch.optim.AdamW(groups(others), **OPTIONS, fused=True)
    crossed.load_state_dict(optimizer.state_dict())
    optimizer.load_state_dict(reference.state_dict())
    run(optimizer, made, range(3, 5))
    run(crossed, others, range(3, 5))
    for one, other in zip(made, others):
        assert relative_error(one, other) < 1e-6, f"{relative_error(one, other):.1e}"
