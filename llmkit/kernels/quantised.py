"""Linear layers whose frozen weights are kept in 8 or 4 bits, in blocks of 64 with a scale each.

Blocks follow each other along a row, and the last one of a row is filled up with zeros. A block's scale is
its largest magnitude. int8: 255 evenly spaced levels. nf4: the 16 levels of NormalFloat (Dettmers et al.
2023, QLoRA), by the kernels of bitsandbytes. A product is that of the weight as these numbers give it, in the
type of the input: the weight is made anew for the forward and for the backward pass, and never kept.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmkit.config.operators import QUANTISED, QUANTISED_BLOCK
from llmkit.errors import UserError
from llmkit.extras import missing_extra

LEVELS = 127
"""Of int8 on either side of zero."""


def prepare(form: str) -> None:
    """Imports what the form needs: bitsandbytes registers its operators with PyTorch.

    Raises UserError where it is not installed.
    """
    if form == "nf4":
        if missing := missing_extra("quantize", "bitsandbytes"):
            raise UserError(f"frozen weights are kept in nf4 (train.lora.quantize_base): {missing}")
        with without_downloads():
            importlib.import_module("bitsandbytes")


@contextmanager
def without_downloads() -> Iterator[None]:
    """In here the package `kernels` cannot be imported: on some CPUs bitsandbytes, which PEFT imports, would
    have it fetch code from the hub, for a product that is not used here, and warns where it is missing."""
    log, there = logging.getLogger("bitsandbytes.backends.cpu.ops"), "kernels" in sys.modules
    before = log.level
    log.setLevel(logging.ERROR)
    if not there:
        sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        log.setLevel(before)
        if not there:
            del sys.modules["kernels"]


class QuantisedWeight:
    """A weight (rows, columns) in `form`, without values until they are written.

    codes: (rows, bytes of a row), int8 or, two numbers a byte, uint8. scales: (rows, blocks of a row) fp32.
    No parameter: it has no gradient, and engines neither partition nor save it.
    """

    def __init__(self, form: str, rows: int, columns: int) -> None:
        self.form, self.shape = form, torch.Size((rows, columns))
        blocks = -(-columns // QUANTISED_BLOCK)
        width = blocks * QUANTISED_BLOCK * QUANTISED[form] // 8
        self.codes = torch.empty(rows, width, dtype=torch.int8 if form == "int8" else torch.uint8)
        self.scales = torch.empty(rows, blocks, dtype=torch.float32)

    def write(self, first: int, values: Tensor) -> None:
        """Sets the rows first, first + 1, ... to `values`, (n, columns), rounded to the form."""
        rows = slice(first, first + len(values))
        self.codes[rows], self.scales[rows] = quantise(values.to(self.codes.device), self.form)

    def values(self, dtype: torch.dtype) -> Tensor:
        """(rows, columns): what the numbers stand for."""
        return dequantise(self.codes, self.scales, self.shape[1], self.form, dtype)


def quantise(values: Tensor, form: str) -> tuple[Tensor, Tensor]:
    """Codes and scales of (rows, columns) values; see `QuantisedWeight`."""
    rows, columns = values.shape
    padded = F.pad(values.float(), (0, -columns % QUANTISED_BLOCK)).contiguous()
    if form == "nf4":
        codes, scales = torch.ops.bitsandbytes.quantize_4bit(padded, QUANTISED_BLOCK, "nf4", torch.uint8)
        return codes.view(rows, -1), scales.view(rows, -1)
    blocks = padded.view(rows, -1, QUANTISED_BLOCK)
    scales = blocks.abs().amax(-1)
    share = blocks / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    return (share * LEVELS).round().to(torch.int8).view(rows, -1), scales


def dequantise(codes: Tensor, scales: Tensor, columns: int, form: str, dtype: torch.dtype) -> Tensor:
    """(rows, columns) of the type: what codes and scales stand for, rounded to it once."""
    rows, blocks = scales.shape
    if form == "nf4":
        shape = (rows, blocks * QUANTISED_BLOCK)
        values = torch.ops.bitsandbytes.dequantize_4bit(
            codes.view(-1, 1), scales.view(-1), QUANTISED_BLOCK, "nf4", shape, dtype
        )
    else:
        steps = (scales / LEVELS).unsqueeze(-1)
        values = (codes.view(rows, blocks, QUANTISED_BLOCK) * steps).to(dtype)
    return values.view(rows, -1)[:, :columns]


def rounded(values: Tensor, form: str) -> Tensor:
    """(rows, columns) fp32: the values as a weight in `form` has them."""
    return dequantise(*quantise(values, form), values.shape[1], form, torch.float32)


class _Linear(torch.autograd.Function):
    """x weight' + bias; the weight has no gradient. columns: of the weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, columns: int, form: str
    ) -> Tensor:
        """The output; keeps neither x nor the weight."""
        ctx.save_for_backward(codes, scales)
        ctx.how = (columns, form)
        return F.linear(x, dequantise(codes, scales, columns, form, x.dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and of the bias."""
        (gradient,), (codes, scales), (columns, form) = gradients, ctx.saved_tensors, ctx.how
        weight = dequantise(codes, scales, columns, form, gradient.dtype)
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return gradient @ weight, None, None, of_bias, None, None


def linear(x: Tensor, weight: Tensor | QuantisedWeight, bias: Tensor | None = None) -> Tensor:
    """See `llmkit.kernels.linear.linear`. A quantised weight gets no gradient."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight.codes, weight.scales, bias, weight.shape[1], weight.form)  # type: ignore[no-untyped-call]
