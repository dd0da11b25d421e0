"""Triton's norms against PyTorch's in float64: odd sizes, views, the sum of a branch, every type."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.float64 import check

EPS = 1e-5
SHAPES = {"odd": (3, 5, 13), "one row": (1, 70), "many rows": (1100, 8), "wide": (7, 1031), "none": (0, 5)}


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, EPS)


def vectors(size: int, dtype: torch.dtype, device: str, count: int = 2) -> list[Tensor]:
    return [(torch.randn(size, device=device) + 0.5).to(dtype).requires_grad_() for _ in range(count)]


def tensor(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return (torch.randn(shape, device=device) * 2 + 0.3).to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norms_and_their_gradients(device, shape, dtype):
    from llmkit.kernels.triton import norm

    x, (weight, bias) = tensor(shape, dtype, device), vectors(shape[-1], dtype, device)
    check(lambda x, w: norm.rms_norm(x, w, EPS), rms_norm, [x, weight])
    check(lambda x, w, b: norm.layer_norm(x, w, b, EPS), layer_norm, [x, weight, bias])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_norms_without_parameters(device, shape, dtype):
    from llmkit.kernels.triton import norm

    x, size = tensor(shape, dtype, device), shape[-1:]
    check(lambda x: norm.rms_norm(x, None, EPS), lambda x: F.rms_norm(x, size, None, EPS), [x])
    check(lambda x: norm.layer_norm(x, None, None, EPS), lambda x: F.layer_norm(x, size, eps=EPS), [x])
    if dtype != torch.bfloat16:
        branch = tensor(shape, dtype, device)
        check(
            lambda x, y: norm.add_rms_norm(x, y, None, EPS),
            lambda x, y: (x + y, F.rms_norm(x + y, size, None, EPS)),
            [x, branch],
        )
        check(
            lambda x, y: norm.add_layer_norm(x, y, None, None, EPS),
            lambda x, y: (x + y, F.layer_norm(x + y, size, eps=EPS)),
            [x, branch],
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_sum_with_a_branch_is_an_output_too(device, shape, dtype):
    from llmkit.kernels.triton import norm

    x, branch = tensor(shape, dtype, device), tensor(shape, dtype, device)
    weight, bias = vectors(shape[-1], dtype, device)
    check(
        lambda x, y, w: norm.add_rms_norm(x, y, w, EPS),
        lambda x, y, w: (x + y, rms_norm(x + y, w)),
        [x, branch, weight],
    )
    check(
        lambda x, y, w, b: norm.add_layer_norm(x, y, w, b, EPS),
        lambda x, y, w, b: (x + y, layer_norm(x + y, w, b)),
        [x, branch, weight, bias],
    )
