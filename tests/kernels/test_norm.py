"""Norms in plain PyTorch against PyTorch's own in float64, after a sum and alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmkit.kernels.norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from tests.kernels.float64 import check

EPS = 1e-4


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_values_and_gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    x, branch = (torch.randn(3, 5, 13, generator=generator).add(0.4).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(13, generator=generator).to(dtype) for _ in range(2))
    # In bf16 sums are rounded before they are normed, and PyTorch adds up weights' gradients in parts.
    allowed = 1e-2 if dtype == torch.bfloat16 else None
    tensors = [each.requires_grad_() for each in (x, weight, bias)]
    check(lambda x, w: rms_norm(x, w, EPS), lambda x, w: F.rms_norm(x, w.shape, w, EPS), tensors[:2])
    check(
        lambda x, w, b: layer_norm(x, w, b, EPS),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS),
        tensors,
        allowed,
    )
    check(lambda x: rms_norm(x, None, EPS), lambda x: F.rms_norm(x, (13,), None, EPS), tensors[:1])
    check(lambda x: layer_norm(x, None, None, EPS), lambda x: F.layer_norm(x, (13,), eps=EPS), tensors[:1])
    tensors = [x, branch.requires_grad_(), weight, bias]
    check(
        lambda x, y, w, _: add_rms_norm(x, y, w, EPS),
        lambda x, y, w, _: (x + y, F.rms_norm(x + y, w.shape, w, EPS)),
        [*tensors[:3], None],
        allowed,
    )
    check(
        lambda x, y, w, b: add_layer_norm(x, y, w, b, EPS),
        lambda x, y, w, b: (x + y, F.layer_norm(x + y, w.shape, w, b, EPS)),
        tensors,
        allowed,
    )


def test_gradients_of_many_rows_are_summed_in_fp32():
    """By PyTorch's kernel for CPUs those of a layer norm's weight and bias in bf16 are not."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).bfloat16().requires_grad_() for size in ((2048, 24), 24, 24)
    )
    check(
        lambda x, w, b: layer_norm(x, w, b, EPS),
        lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS),
        [x, weight, bias],
    )
    check(lambda x, w: rms_norm(x, w, EPS), lambda x, w: F.rms_norm(x, w.shape, w, EPS), [x, weight])
