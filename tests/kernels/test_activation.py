"""Activations in plain PyTorch against their formulas in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from llmkit.kernels.activation import geglu, gelu, relu2, swiglu
from tests.kernels.float64 import check


def gelu_formula(x: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    x = x + bias
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients(dtype):
    both = (torch.randn(3, 5, 26, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    gate, up = (each.requires_grad_() for each in both.split(13, -1))
    allowed = 8e-3 if dtype == torch.bfloat16 else None  # silu(gate) and x + bias are rounded in between
    check(swiglu, lambda gate, up: gate / (1 + torch.exp(-gate)) * up, [gate, up], allowed)
    check(geglu, lambda gate, up: gelu_formula(gate) * up, [gate, up], allowed)
    check(gelu, gelu_formula, [gate], allowed)
    bias = both[0, 0, :13].detach().clone().requires_grad_()
    check(gelu, gelu_formula, [gate, bias], allowed)
    check(relu2, lambda x: x.clamp(min=0) ** 2, [gate], allowed)
    check(relu2, lambda x, bias: (x + bias).clamp(min=0) ** 2, [gate, bias], allowed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gelu_in_compiled_code_is_the_same_function(dtype):
    x = (torch.randn(7, 13, generator=torch.Generator().manual_seed(1)) * 4).to(dtype).requires_grad_()
    compiled = torch.compile(gelu, backend="eager", fullgraph=True, dynamic=False)
    check(compiled, gelu_formula, [x], 8e-3 if dtype == torch.bfloat16 else None)
    large = torch.tensor([-1e4, -90.0, 90.0, 1e4])
    torch.testing.assert_close(compiled(large), torch.tensor([0.0, 0.0, 90.0, 1e4]))
