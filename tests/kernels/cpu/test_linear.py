"""The weight's gradient against float64, at sizes that fill no block, on any number of threads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from llmkit.kernels import linear as plain
from llmkit.kernels.cpu.linear import (
    LEAST_DEPTH,
    add_weight_gradient_,
    biased,
    input_gradient,
    linear,
    multiply_rows_into,
    weight_gradient,
)
from llmkit.monitor.hardware import has_avx512_bf16
from tests.kernels.float64 import check, relative_error

pytestmark = pytest.mark.skipif(not has_avx512_bf16(), reason="needs a CPU with AVX-512 BF16")

SIZES = [(1, 1, 1), (2, 8, 48), (77, 101, 53), (513, 9, 800), (300, 800, 49), (600, 33, 31), (257, 2800, 400)]


def draw(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize("size", SIZES)
def test_sums_are_those_of_float64_rounded_once(size: tuple[int, int, int]) -> None:
    depth, rows, columns = size
    left, right = draw(depth, rows), draw(depth, columns, seed=1)
    exact = left.double().T @ right.double()
    assert relative_error(weight_gradient(left, right), exact) < 3e-3
    total = torch.full((rows, columns), 3.0)
    add_weight_gradient_(total, left, right)
    assert relative_error(total.double() - 3.0, exact) < 1e-6
    torch.testing.assert_close(total.double() - 3.0, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [*SIZES, (0, 9, 7), (8, 800, 3), (1300, 30, 801)])
def test_the_inputs_gradient_is_that_of_float64_rounded_once(size: tuple[int, int, int]) -> None:
    rows, depth, columns = size
    left, right = draw(rows, depth), draw(depth, columns, seed=1)
    found = input_gradient(left, right)
    torch.testing.assert_close(found.double(), left.double() @ right.double(), rtol=8e-3, atol=1e-4)
    wide = torch.zeros(rows, columns + 9).bfloat16()
    multiply_rows_into(left.T.contiguous().T, right, wide[:, 4 : columns + 4])
    assert torch.equal(wide[:, 4 : columns + 4], found)
    assert not wide[:, :4].any() and not wide[:, columns + 4 :].any()


def test_views_and_transposed_matrices_are_read_where_they_lie() -> None:
    left, right = draw(90, 64)[:, 5:40], draw(50, 90, seed=1).T
    found = weight_gradient(left, right)
    assert torch.equal(found, weight_gradient(left.contiguous(), right.contiguous()))
    assert relative_error(found, left.double().T @ right.double()) < 3e-3
    total = torch.zeros(40, 64)
    add_weight_gradient_(total[2:37, 4:54], left, right)
    assert torch.equal(total[2:37, 4:54].bfloat16(), found)
    assert total.count_nonzero() == total[2:37, 4:54].count_nonzero()


def test_no_tokens_make_a_gradient_of_zero() -> None:
    assert torch.equal(weight_gradient(draw(0, 9), draw(0, 7)), torch.zeros(9, 7).bfloat16())


def test_the_number_of_threads_changes_no_bit() -> None:
    left, right = draw(515, 203), draw(515, 1001, seed=1)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            found.append((weight_gradient(left, right), input_gradient(left.T[:, :514], right[:514])))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for each in found for one, other in zip(each, found[0]))


def test_values_that_are_not_finite_reach_the_gradient() -> None:
    left, right = draw(40, 16), draw(40, 50, seed=1)
    left[7, 3] = float("inf")
    assert not weight_gradient(left, right)[3].isfinite().any()
    assert weight_gradient(left, right)[4].isfinite().all()
    assert not input_gradient(left.T, right)[3].isfinite().any()
    assert input_gradient(left.T, right)[4].isfinite().all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("outputs", [33, LEAST_DEPTH + 1, LEAST_DEPTH + 2])
def test_the_layer_and_its_gradients(bias: bool, dtype: torch.dtype, outputs: int) -> None:
    x, weight, shift = draw(3, 37, 50), draw(outputs, 50, seed=1), draw(outputs, seed=2)
    inputs = [each.to(dtype).requires_grad_() for each in ((x, weight, shift) if bias else (x, weight))]
    check(linear, plain.linear, inputs)


def test_inputs_and_weights_that_take_no_gradient_get_none() -> None:
    x, weight = draw(5, 50), draw(33, 50, seed=1)
    assert not linear(x, weight).requires_grad
    linear(x.requires_grad_(), weight).sum().backward()
    assert x.grad is not None and weight.grad is None
    linear(x.detach(), weight.requires_grad_()).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("with_bias", [False, True])
def test_the_layer_passes_through_a_graph(with_bias: bool) -> None:
    x, weight, bias = (
        each.requires_grad_() for each in (draw(4, 9, 50), draw(600, 50, seed=1), draw(600, seed=2))
    )
    inputs = (x, weight, bias) if with_bias else (x, weight)
    compiled = torch.compile(linear, backend="aot_eager", fullgraph=True)
    found, wanted = (torch.autograd.grad(form(*inputs).square().sum(), inputs) for form in (compiled, linear))
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_the_product_with_a_bias_is_an_operator_of_its_own() -> None:
    """Inductor takes oneDNN's operator with constant weights only, so graphs must not show it."""
    x, weight, bias = draw(4, 9, 50), draw(33, 50, seed=1), draw(33, seed=2)
    torch.library.opcheck(biased, (x, weight, bias))
    graph = make_fx(biased, tracing_mode="fake")(x, weight, bias)
    assert "mkldnn" not in graph.code
