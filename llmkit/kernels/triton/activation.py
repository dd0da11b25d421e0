"""SwiGLU, GeGLU, GELU and squared ReLU, each way in one pass. Contracts: `llmkit.kernels.activation`.

Gate and up are two parts of one projection: they are read where they lie, and their gradients are written
side by side, so that they are the projection's gradient without a copy (`llmkit.kernels.split`).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmkit.kernels.triton.launch import (
    Rows,
    Tile,
    arithmetic,
    in_memory_order,
    require_shape,
    resident_programs,
    row_offset,
)
from llmkit.kernels.triton.operation import Operation

COLUMNS = 1024
"""Elements of a row that a program holds at most: nothing here needs a whole row."""


@triton.jit
def _gelu_sigmoid(x, TYPE: tl.constexpr):
    """sigmoid(2 u) = 0.5 (1 + tanh(u)), u = sqrt(2 / pi) (x + 0.044715 x^3); the slope of x sigmoid(2 u)."""
    cubic = tl.full((), 0.044715, TYPE) * x * x
    slope = tl.full((), 1.5957691216057308, TYPE)
    sigmoid = tl.sigmoid(slope * x * (1.0 + cubic))
    return sigmoid, sigmoid + x * sigmoid * (1.0 - sigmoid) * slope * (1.0 + 3.0 * cubic)


@triton.jit
def _gated_kernel(
    gate_ptr, up_ptr, y_ptr, rows, size,
    gate_inner, gate_outer_stride, gate_stride, up_inner, up_outer_stride, up_stride,
    GELU: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    at = row_offset(row, gate_inner, gate_outer_stride, gate_stride)
    gate = tl.load(gate_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
    at = row_offset(row, up_inner, up_outer_stride, up_stride)
    up = tl.load(up_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
    sigmoid = _gelu_sigmoid(gate, TYPE)[0] if GELU else tl.sigmoid(gate)
    y = gate * sigmoid * up
    tl.store(y_ptr + row[:, None] * size + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _gated_backward_kernel(
    dy_ptr, gate_ptr, up_ptr, dboth_ptr, rows, size,
    gate_inner, gate_outer_stride, gate_stride, up_inner, up_outer_stride, up_stride,
    GELU: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    at = row_offset(row, gate_inner, gate_outer_stride, gate_stride)
    gate = tl.load(gate_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
    at = row_offset(row, up_inner, up_outer_stride, up_stride)
    up = tl.load(up_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
    dy = tl.load(dy_ptr + row[:, None] * size + column[None, :], mask=inside, other=0.0).to(TYPE)
    if GELU:
        sigmoid, slope = _gelu_sigmoid(gate, TYPE)
    else:
        sigmoid = tl.sigmoid(gate)
        slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    dgate = dy * up * slope
    target = dboth_ptr + row[:, None] * (2 * size) + column[None, :]
    tl.store(target, dgate.to(dboth_ptr.dtype.element_ty), mask=inside)
    tl.store(target + size, (dy * gate * sigmoid).to(dboth_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _forward_kernel(
    x_ptr, bias_ptr, y_ptr, rows, size, x_inner, x_outer_stride, x_stride,
    RELU2: tl.constexpr, BIAS: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    at = row_offset(row, x_inner, x_outer_stride, x_stride)
    x = tl.load(x_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
    if BIAS:
        x += tl.load(bias_ptr + column, mask=column < size, other=0.0).to(TYPE)[None, :]
    if RELU2:
        positive = tl.where(x < 0.0, 0.0, x)  # not a maximum, which would make 0 of what is not a number
        y = positive * positive
    else:
        y = x * _gelu_sigmoid(x, TYPE)[0]
    tl.store(y_ptr + row[:, None] * size + column[None, :], y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, dbias_ptr, rows, size, x_inner, x_outer_stride, x_stride,
    RELU2: tl.constexpr, BIAS: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    dbias = tl.zeros((ROWS, COLUMNS), TYPE)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < size)[None, :]
        at = row_offset(row, x_inner, x_outer_stride, x_stride)
        x = tl.load(x_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
        if BIAS:
            x += tl.load(bias_ptr + column, mask=column < size, other=0.0).to(TYPE)[None, :]
        flat = row[:, None] * size + column[None, :]
        dy = tl.load(dy_ptr + flat, mask=inside, other=0.0).to(TYPE)
        if RELU2:
            dx = dy * 2.0 * tl.where(x < 0.0, 0.0, x)
        else:
            dx = dy * _gelu_sigmoid(x, TYPE)[1]
        tl.store(dx_ptr + flat, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        if BIAS:
            dbias += dx
    if BIAS:
        tl.store(dbias_ptr + tl.program_id(0) * size + column, tl.sum(dbias, axis=0), mask=column < size)


def _grid(x: Tensor) -> tuple[int, int, Tile, tuple[int, int]]:
    """Rows and their size, the tile, and the number of tiles along both."""
    size = x.shape[-1]
    rows = x.numel() // max(size, 1)
    tile = Tile.of(min(size, COLUMNS), rows)
    return rows, size, tile, (triton.cdiv(rows, tile.rows), triton.cdiv(size, tile.columns))


def _gated_forward(gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """gelu: gelu(gate) * up; else silu(gate) * up."""
    require_shape("up", up, *gate.shape)
    y = gate.new_empty(gate.shape)
    rows, size, tile, grid = _grid(gate)
    if y.numel():
        of_gate, of_up = Rows.of(gate), Rows.of(up)
        _gated_kernel[grid](
            of_gate.tensor, of_up.tensor, y, rows, size, *of_gate[1:], *of_up[1:],
            GELU=gelu, TYPE=arithmetic(gate), ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return y


def _gated_gradients(dy: Tensor, gate: Tensor, up: Tensor, gelu: bool) -> Tensor:
    """(..., 2 * size): the gradient of gate, and beside it that of up."""
    dboth = _both(gate)
    rows, size, tile, grid = _grid(gate)
    if dy.numel():
        of_gate, of_up = Rows.of(gate), Rows.of(up)
        _gated_backward_kernel[grid](
            dy.contiguous(), of_gate.tensor, of_up.tensor, dboth, rows, size, *of_gate[1:], *of_up[1:],
            GELU=gelu, TYPE=arithmetic(gate), ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return dboth


def _both(gate: Tensor) -> Tensor:
    return gate.new_empty(*gate.shape[:-1], 2 * gate.shape[-1])


def _keep_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.gelu = inputs[2]


def _differentiate_gated(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
    dgate, dup = _gated_backward(dy, *ctx.saved_tensors, ctx.gelu).chunk(2, dim=-1)
    return dgate, dup, None


_gated_backward = Operation("gated_backward", _gated_gradients, lambda dy, gate, up, gelu: _both(gate))
_gated = Operation("gated", _gated_forward, lambda gate, up, gelu: gate.new_empty(gate.shape)).with_gradients(
    _keep_gated, _differentiate_gated
)


def _forward(x: Tensor, bias: Tensor | None, squared: bool) -> Tensor:
    """squared: relu(x + bias)^2; else GELU."""
    y = x.new_empty(x.shape)
    rows, size, tile, grid = _grid(x)
    require_shape("the bias", bias, size)
    if y.numel():
        of_x = Rows.of(x)
        _forward_kernel[grid](
            of_x.tensor, x if bias is None else bias, y, rows, size, *of_x[1:],
            RELU2=squared, BIAS=bias is not None, TYPE=arithmetic(x),
            ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
        )  # fmt: skip
    return y


def _gradients(dy: Tensor, x: Tensor, bias: Tensor | None, squared: bool) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bias (empty without one)."""
    dx, dbias = _empty_gradients(dy, x, bias, squared)
    rows, size, tile, grid = _grid(x)
    if dy.numel() == 0:
        return dx, dbias.zero_()
    of_x, blocks = Rows.of(x), grid[0]
    if bias is not None:  # few programs along the rows, so that there are few sums
        blocks = max(1, resident_programs(x.device, grid[0] * grid[1]) // grid[1])
    sums = torch.empty(
        blocks if bias is not None else 0, size,
        dtype=torch.promote_types(x.dtype, torch.float32), device=x.device,
    )  # fmt: skip
    _backward_kernel[(blocks, grid[1])](
        dy.contiguous(), of_x.tensor, x if bias is None else bias, dx, sums, rows, size, *of_x[1:],
        RELU2=squared, BIAS=bias is not None, TYPE=arithmetic(x),
        ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return dx, dbias if bias is None else sums.sum(0).to(bias.dtype)


def _empty_gradients(dy: Tensor, x: Tensor, bias: Tensor | None, squared: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0) if bias is None else torch.empty_like(bias)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.squared = inputs[2]


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
    x, bias = ctx.saved_tensors
    dx, dbias = _ungated_backward(dy, x, bias, ctx.squared)
    return dx, None if bias is None else dbias, None


_ungated_backward = Operation("ungated_backward", _gradients, _empty_gradients)
_ungated = Operation("ungated", _forward, lambda x, bias, squared: x.new_empty(x.shape)).with_gradients(
    _keep, _differentiate
)


@in_memory_order
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `llmkit.kernels.activation.swiglu`."""
    return _gated(gate, up, False)


@in_memory_order
def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `llmkit.kernels.activation.geglu`."""
    return _gated(gate, up, True)


@in_memory_order
def gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `llmkit.kernels.activation.gelu`."""
    return _ungated(x, bias, False)


@in_memory_order
def relu2(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """See `llmkit.kernels.activation.relu2`."""
    return _ungated(x, bias, True)


gelu.adds_bias = relu2.adds_bias = True  # type: ignore[attr-defined]
