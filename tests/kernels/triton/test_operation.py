"""Operations are called directly, and through the dispatcher only where somebody records them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_both_ways_compute_the_same_with_gradients(device):
    from llmkit.kernels.triton.operation import Operation

    calls = []

    def forward(x: Tensor, factor: float) -> Tensor:
        calls.append("forward")
        return x.numpy(force=True).sum() * factor * torch.ones(2, device=x.device)

    def backward(dy: Tensor, x: Tensor, factor: float) -> Tensor:
        calls.append("backward")
        return torch.ones_like(x) * dy.sum() * factor

    def keep(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.factor = inputs[1]

    back = Operation("test_back", backward, lambda dy, x, factor: torch.empty_like(x))
    call = Operation("test_sum", forward, lambda x, factor: x.new_empty(2)).with_gradients(
        keep, lambda ctx, dy: (back(dy, *ctx.saved_tensors, ctx.factor), None)
    )
    x = torch.arange(3.0, device=device, requires_grad=True)
    wanted = torch.full((3,), 5.0, device=device)
    found = torch.autograd.grad(call(x, 2.5).sum(), x)[0]
    assert torch.equal(found, wanted) and calls == ["forward", "backward"], f"{found}, {calls}"
    with Seen() as seen:
        found = torch.autograd.grad(call(x, 2.5).sum(), x)[0]
    assert torch.equal(found, wanted) and "test_sum.default" in seen.names, f"{found}, {seen.names}"
    assert call(torch.empty(3, device="meta"), 2.5).is_meta
    assert len(calls) == 4, str(calls)
    (gradient,) = torch.autograd.grad(call(x, 2.5).square().sum(), x, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        assert "once_differentiable" in str(error)
    else:
        raise AssertionError("second derivatives, which nobody has written down")
