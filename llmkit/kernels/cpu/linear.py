"""The linear layer on CPUs with AVX-512 BF16: gradients in bf16 by kernels of our own (`gradients.cpp`).

oneDNN reaches 90 to 95 % of the matrix rate in the forward pass, but 75 to 80 % in the weight's gradient,
whose left operand is transposed, and in the gradient of the head's input, whose sums are long.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.kernels.cpu.load import enough_memory, load
from llmkit.kernels.linear_products import PRODUCTS, TorchProducts, product_linear


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `llmkit.kernels.linear.linear`, which is what other types than bf16 and frozen weights get."""
    if x.dtype != torch.bfloat16 or not (weight.requires_grad and torch.is_grad_enabled()):
        return F.linear(x, weight, bias)
    return product_linear(x, weight, bias, "avx512")


LEAST_DEPTH = 512
"""Outputs of a layer from which on the gradient of its input is computed by our kernel: where there are
fewer, to interleave the operands takes longer than oneDNN loses."""


class Avx512Products(TorchProducts):
    """See `Products`: those of PyTorch for other types than bf16."""

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Products.output`."""
        plain = bias is None or x.dtype != torch.bfloat16
        return F.linear(x, weight, bias) if plain else biased(x, weight, bias), (x, weight)

    def of_x(self, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """See `Products.of_x`."""
        gradient, weight = operands
        if dtype == torch.bfloat16 and len(weight) >= LEAST_DEPTH:
            return input_gradient(gradient, weight)
        return gradient @ weight

    def of_weight(self, operands: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """See `Products.of_weight`."""
        gradient, x = operands
        return weight_gradient(gradient, x) if dtype == torch.bfloat16 else gradient.mT @ x


PRODUCTS["avx512"] = Avx512Products()


@torch.library.custom_op("llmkit::biased", mutates_args=(), device_types="cpu")
def biased(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x weight' + bias, all bf16, rounded once.

    `F.linear` and inductor's `addmm` fill the output with the bias first and add to it, which takes 3 to 15 %
    longer. Inductor refuses oneDNN's own operator where weights may change, so it is behind this one.
    """
    output: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return output


@biased.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("llmkit::input_gradient", mutates_args=(), device_types="cpu")
def input_gradient(outputs: Tensor, weight: Tensor) -> Tensor:
    """outputs weight: (tokens, out), (out, in) -> (tokens, in), all bf16; summed in fp32, rounded once."""
    return multiply_rows_into(outputs, weight, outputs.new_empty(len(outputs), weight.shape[1]))


@input_gradient.register_fake
def _(outputs: Tensor, weight: Tensor) -> Tensor:
    return outputs.new_empty(len(outputs), weight.shape[1])


def multiply_rows_into(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """out = left right, all bf16; by PyTorch where the depth is odd."""
    left, right = (each if each.stride(1) == 1 else each.contiguous() for each in (left, right))
    if out.is_meta:
        return out
    if not left.shape[1] or left.shape[1] % 2:
        return torch.mm(left, right, out=out)
    _library().input_gradient(
        left.data_ptr(), left.stride(0), right.data_ptr(), right.stride(0), out.data_ptr(), out.stride(0),
        left.shape[1], len(left), right.shape[1], torch.get_num_threads(),
    )  # fmt: skip
    return out


@torch.library.custom_op("llmkit::weight_gradient", mutates_args=(), device_types="cpu")
def weight_gradient(outputs: Tensor, inputs: Tensor) -> Tensor:
    """outputs' inputs: (tokens, out), (tokens, in) -> (out, in), all bf16; summed in fp32, rounded once."""
    result = outputs.new_empty(outputs.shape[1], inputs.shape[1])
    multiply_into(outputs, inputs, result, add=False)
    return result


@weight_gradient.register_fake
def _(outputs: Tensor, inputs: Tensor) -> Tensor:
    return outputs.new_empty(outputs.shape[1], inputs.shape[1])


@torch.library.custom_op("llmkit::add_weight_gradient_", mutates_args=("total",), device_types="cpu")
def add_weight_gradient_(total: Tensor, outputs: Tensor, inputs: Tensor) -> None:
    """total += outputs' inputs, with total (out, in) in fp32."""
    multiply_into(outputs, inputs, total, add=True)


def multiply_into(left: Tensor, right: Tensor, out: Tensor, add: bool) -> None:
    """out = left' right, or out += that where `add`, which needs an `out` in fp32."""
    if out.is_meta:
        return
    left, right = (each if each.stride(1) == 1 else each.contiguous() for each in (left, right))
    depth, rows, columns = left.shape[0], left.shape[1], right.shape[1]
    if depth == 0 and not add:
        out.zero_()
    _library().weight_gradient(
        left.data_ptr(), left.stride(0), right.data_ptr(), right.stride(0), out.data_ptr(), out.stride(0),
        depth, rows, columns, out.dtype == torch.bfloat16, add, torch.get_num_threads(),
    )  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    library: Any = load("gradients.cpp")
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    common = [pointer, size, pointer, size, pointer, size, size, size, size]
    library.weight_gradient.argtypes = [*common, number, number, number]
    library.input_gradient.argtypes = [*common, number]
    for function in (library.weight_gradient, library.input_gradient):
        function.restype, function.errcheck = number, enough_memory
    return library
