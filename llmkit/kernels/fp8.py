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

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.kernels.linear_products import PRODUCTS, product_linear

FORWARD, BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16
"""Of inner and output sizes of a product."""
SMALLEST = 1e-12
"""Magnitude below which a whole tensor counts as zero."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `llmkit.kernels.linear.linear`. Both sizes of the weight must be multiples of 16."""
    return product_linear(x, weight, bias, "fp8")


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


class Fp8Products:
    """See `Products`. Kept for the backward pass: x in 8 bits, and the weight as it is."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Products.output`."""
        x8, x_scale = quantise(x.reshape(-1, x.shape[-1]), FORWARD)
        w8, w_scale = quantise(weight, FORWARD)
        y = torch._scaled_mm(x8, w8.t(), x_scale, w_scale, out_dtype=x.dtype, use_fast_accum=True)
        y = y.view(*x.shape[:-1], weight.shape[0])
        return y if bias is None else y + bias, (x8, x_scale, weight, w_scale)

    def operands(
        self, gradient: Tensor, kept: Sequence[Tensor], for_x: bool, for_weight: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See `Products.operands`. Both matrices are in rows; the second one is the product's, transposed."""
        x8, x_scale, weight, w_scale = kept
        dy8, dy_scale = quantise(gradient, BACKWARD)
        of_x: list[Tensor] = []
        of_weight: list[Tensor] = []
        if for_x:
            w8 = _rounded(weight, w_scale.reciprocal(), FORWARD)
            of_x = [dy8, w8.t().contiguous(), dy_scale, w_scale]
        if for_weight:
            of_weight = [_whole(dy8).t().contiguous(), _whole(x8).t().contiguous(), dy_scale, x_scale]
        return of_x, of_weight

    def of_x(self, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """See `Products.of_x`."""
        left, right, left_scale, right_scale = operands
        return torch._scaled_mm(left, right.t(), left_scale, right_scale, out_dtype=dtype)

    of_weight = of_x


def _whole(matrix: Tensor) -> Tensor:
    """With rows of zeros up to a multiple of 16: rows are what a weight's gradient sums over."""
    missing = -matrix.shape[0] % MULTIPLE
    return F.pad(matrix, (0, 0, 0, missing)) if missing else matrix


PRODUCTS["fp8"] = Fp8Products()
