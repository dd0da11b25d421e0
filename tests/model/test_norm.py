"""Norms against PyTorch's in fp64, with their gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.model.norm import LayerNorm, RMSNorm, WidthRMSNorm, make_norm
from llmkit.parallel.mesh import TensorParallel
from llmkit.parallel.slices import full_slice
from tests.shapes import randomise

SIZE, EPS = 13, 1e-3
ALONE = TensorParallel()


def reference(norm: torch.nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients, of its squares' sum, in fp64; "x" is the input."""
    weights = {name: p.detach().double().requires_grad_() for name, p in norm.named_parameters()}
    x = x.detach().double().requires_grad_()
    weight = weights["weight"] + norm.offset if "weight" in weights else None
    if isinstance(norm, (RMSNorm, WidthRMSNorm)):
        out = F.rms_norm(x, (SIZE,), weight, EPS)
    else:
        out = F.layer_norm(x, (SIZE,), weight, weights.get("bias"), EPS)
    out.pow(2).sum().backward()
    return out.detach(), {name: each.grad for name, each in {**weights, "x": x}.items()}


@pytest.mark.parametrize(("affine", "offset"), [(True, 0.0), (False, 0.0), (True, 1.0)])
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm", "width"])
def test_output_and_gradients(kind, affine, offset):
    how = {"affine": affine, "offset": offset}
    norm = WidthRMSNorm(SIZE, EPS, ALONE, **how) if kind == "width" else make_norm(kind, SIZE, EPS, **how)
    randomise(norm)
    assert bool(dict(norm.named_parameters())) == affine
    x = (torch.randn(3, 5, SIZE) * 0.1 + 0.3).requires_grad_()
    out = norm(x)
    out.pow(2).sum().backward()
    wanted, gradients = reference(norm, x)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-6)
    for name, each in {**dict(norm.named_parameters()), "x": x}.items():
        rounding = 2e-6 * float(gradients[name].abs().max())  # of terms that may cancel
        torch.testing.assert_close(each.grad.double(), gradients[name], rtol=1e-4, atol=rounding)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
def test_statistics_are_fp32_under_bf16(kind, offset):
    norm = randomise(make_norm(kind, SIZE, EPS, offset=offset))
    x = (torch.randn(64, SIZE) * 30 + 100).bfloat16()
    wanted, _ = reference(norm.bfloat16(), x)
    found = norm(x)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - wanted).norm() / wanted.norm()).item() < 4e-3


def test_parameters_are_full_tensors():
    assert RMSNorm(SIZE, EPS).parameter_slices("norm") == {"weight": [full_slice("norm.weight", (SIZE,))]}
    assert set(LayerNorm(SIZE, EPS).parameter_slices("norm")) == {"weight", "bias"}


def test_a_norm_over_a_width_is_sharded_like_the_outputs_that_it_normalises():
    (part,) = WidthRMSNorm(12, EPS, TensorParallel(rank=1, size=3)).parameter_slices("q_norm")["weight"]
    assert (part.name, part.shape, part.box, part.start, part.stop) == (
        "q_norm.weight",
        (12,),
        ((4, 8),),
        0,
        4,
    )
