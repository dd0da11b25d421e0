"""Linear layers whose three matrix products are of 8-bit floating-point numbers (Micikevicius et al. 2022).

Input and weight are rounded to e4m3 (4 bits of exponent, 3 of mantissa), the output's gradient to e5m2; each
tensor has one scale, by its own largest magnitude at that moment. Scales are powers of two, so that scaling
is exact: what is lost is rounding to 3 (2) bits of mantissa, and magnitudes far below the largest one. For
the same reason a tensor that several ranks hold in parts, each with a scale of its own, is rounded as it is
in one piece, but for those magnitudes. Sums are in fp32, outputs and gradients in the operands' type.

`torch._scaled_mm` computes the products on GPUs of compute capability 8.9 and newer, and, with the same
rounding and no gain in speed, on CPUs. It takes a first matrix in rows, a second one in columns, and inner
and output sizes that are multiples of 16.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Of inner and output sizes of a product."""
SMALLEST = 1e-12
"""Magnitude below which a whole tensor counts as zero."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `llmkit.kernels.linear.linear`. Both sizes of the weight must be multiples of 16."""
    y: Tensor = _Fp8Linear.apply(x.flatten(0, -2), weight)  # type: ignore[no-untyped-call]
    y = y.unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in an 8-bit type, and the power of two, () fp32, by which that is to be multiplied to give x.

    Not finite values stay not finite.
    """
    ratio = torch.finfo(dtype).max / x.abs().amax().float().clamp(min=SMALLEST)
    scale = (ratio.view(torch.int32) & 0x7F800000).view(torch.float32)  # its exponent alone
    return _rounded(x, scale, dtype), scale.reciprocal()


def _rounded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """x times the scale, in an 8-bit type."""
    largest = torch.finfo(dtype).max
    return (x.float() * scale).clamp(-largest, largest).to(dtype)


class _Fp8Linear(torch.autograd.Function):
    """x weight' of matrices. Kept for the backward pass: x in 8 bits, and the weight as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        x8, x_scale = quantise(x, FORWARD)
        w8, w_scale = quantise(weight, FORWARD)
        ctx.save_for_backward(x8, x_scale, weight, w_scale)
        return torch._scaled_mm(x8, w8.t(), x_scale, w_scale, out_dtype=x.dtype, use_fast_accum=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x8, x_scale, weight, w_scale = ctx.saved_tensors
        dtype, dx, dweight = gradients[0].dtype, None, None
        dy8, dy_scale = quantise(gradients[0], BACKWARD)
        if ctx.needs_input_grad[0]:
            w8 = _rounded(weight, w_scale.reciprocal(), FORWARD)
            dx = torch._scaled_mm(dy8, _columns(w8), dy_scale, w_scale, out_dtype=dtype)
        if ctx.needs_input_grad[1]:
            rows = _whole(dy8).t().contiguous()
            dweight = torch._scaled_mm(rows, _columns(_whole(x8)), dy_scale, x_scale, out_dtype=dtype)
        return dx, dweight


def _columns(matrix: Tensor) -> Tensor:
    """The same matrix, stored column by column."""
    return matrix.t().contiguous().t()


def _whole(matrix: Tensor) -> Tensor:
    """With rows of zeros up to a multiple of 16: rows are what a weight's gradient sums over."""
    missing = -matrix.shape[0] % MULTIPLE
    return F.pad(matrix, (0, 0, 0, missing)) if missing else matrix
