"""Triton's activations against PyTorch's in float64: parts of one projection, odd sizes, every type."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.float64 import check

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = {"odd": (3, 5, 13), "one row": (1, 70), "many rows": (700, 8), "several blocks": (3, 1500)}


def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@pytest.mark.parametrize("name", ["swiglu", "geglu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_gate_of_two_parts_of_one_projection(device, shape, dtype, name):
    from llmkit.kernels.triton import activation

    both = (torch.randn(*shape[:-1], 2 * shape[-1], device=device) * 3).to(dtype)
    gate, up = (each.requires_grad_() for each in both.split(shape[-1], -1))
    function = F.silu if name == "swiglu" else gelu
    check(getattr(activation, name), lambda gate, up: function(gate) * up, [gate, up])


def relu2(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.relu(x if bias is None else x + bias) ** 2


@pytest.mark.parametrize("function", [gelu, relu2], ids=["gelu", "relu2"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_an_activation_with_the_bias_before_it(device, shape, dtype, bias, function):
    from llmkit.kernels.triton import activation

    x = (torch.randn(shape, device=device) * 3).to(dtype).requires_grad_()
    biases = [torch.randn(shape[-1], device=device).to(dtype).requires_grad_()] if bias else []
    check(getattr(activation, function.__name__), function, [x, *biases])


def test_the_square_of_what_is_no_number_is_none(device):
    from llmkit.kernels.triton.activation import relu2 as triton_relu2

    x = torch.tensor([float("nan"), -1.0, 0.0, 3.0, float("inf")], device=device, requires_grad=True)
    found = triton_relu2(x)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), F.relu(x.detach()) ** 2, equal_nan=True)
    assert x.grad[0].isnan() and x.grad[1:4].tolist() == [0.0, 0.0, 6.0]


def test_large_inputs_saturate(device):
    from llmkit.kernels.triton.activation import gelu as triton_gelu
    from llmkit.kernels.triton.activation import swiglu

    x = torch.tensor([-1e4, -90.0, -12.0, 0.0, 12.0, 90.0, 1e4], device=device)
    wanted = torch.tensor([0.0, 0.0, 0.0, 0.0, 12.0, 90.0, 1e4], device=device)
    for found in (triton_gelu(x), swiglu(x, torch.ones_like(x))):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_what_lies_sequence_first_stays_so_and_gradients_of_one_projection_are_not_copied(device):
    from llmkit.kernels.split import split
    from llmkit.kernels.triton.activation import gelu as triton_gelu
    from llmkit.kernels.triton.activation import swiglu

    for exchange in (False, True):
        both = torch.randn(5, 3, 14, device=device, requires_grad=True)
        seen = []
        both.register_hook(lambda gradient: seen.append(gradient._base is not None))  # noqa: B023
        gate, up = (each.transpose(0, 1) if exchange else each for each in split(both, (7, 7)))
        y = swiglu(gate, up)
        assert (y.transpose(0, 1) if exchange else y).is_contiguous(), "copied"
        y.square().sum().backward()
        wanted = both.detach().double().requires_grad_()
        (F.silu(wanted[..., :7]) * wanted[..., 7:]).square().sum().backward()
        torch.testing.assert_close(both.grad.double(), wanted.grad, rtol=1e-5, atol=1e-5)
        assert seen == [True], "gradients were copied together"
        assert triton_gelu(gate).stride() == y.stride(), "gelu"
