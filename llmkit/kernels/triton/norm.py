"""RMS and layer norm, each with and without the addition of a branch before it: one pass each way.

Contracts: `llmkit.kernels.norm`. Rows of any strides are read in place. The gradients of weight and bias are
sums over rows: each program adds up its own rows, and the programs' sums are added in a fixed order, so that
the result is the same every time.
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


@triton.jit
def _forward_kernel(
    x_ptr, branch_ptr, weight_ptr, bias_ptr, total_ptr, y_ptr, mean_ptr, rstd_ptr,
    rows, size, x_inner, x_outer_stride, x_stride, branch_inner, branch_outer_stride, branch_stride,
    EPS: tl.constexpr, ADD: tl.constexpr, LAYER: tl.constexpr, AFFINE: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < size)[None, :]
    flat = row[:, None] * size + column[None, :]
    at = row_offset(row, x_inner, x_outer_stride, x_stride)
    x = tl.load(x_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
    if ADD:
        at = row_offset(row, branch_inner, branch_outer_stride, branch_stride)
        x += tl.load(branch_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
        rounded = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + flat, rounded, mask=inside)
        x = rounded.to(TYPE)
    if LAYER:
        mean = tl.sum(x, axis=1) / size
        tl.store(mean_ptr + row, mean, mask=row < rows)
        x = tl.where(inside, x - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / size + tl.full((), EPS, TYPE))
    tl.store(rstd_ptr + row, rstd, mask=row < rows)
    y = x * rstd[:, None]
    if AFFINE:
        y *= tl.load(weight_ptr + column, mask=column < size, other=0.0).to(TYPE)[None, :]
        if LAYER:
            y += tl.load(bias_ptr + column, mask=column < size, other=0.0).to(TYPE)[None, :]
    tl.store(y_ptr + flat, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    dy_ptr, dtotal_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dweight_ptr, dbias_ptr,
    rows, size, x_inner, x_outer_stride, x_stride,
    ADD: tl.constexpr, LAYER: tl.constexpr, AFFINE: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLUMNS)
    if AFFINE:
        weight = tl.load(weight_ptr + column, mask=column < size, other=0.0).to(TYPE)
    dweight = tl.zeros((ROWS, COLUMNS), TYPE)
    dbias = tl.zeros((ROWS, COLUMNS), TYPE)
    for block in range(tl.program_id(0), tl.cdiv(rows, ROWS), tl.num_programs(0)):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < size)[None, :]
        flat = row[:, None] * size + column[None, :]
        at = row_offset(row, x_inner, x_outer_stride, x_stride)
        x = tl.load(x_ptr + at[:, None] + column[None, :], mask=inside, other=0.0).to(TYPE)
        dy = tl.load(dy_ptr + flat, mask=inside, other=0.0).to(TYPE)
        rstd = tl.load(rstd_ptr + row, mask=row < rows, other=0.0)
        if LAYER:
            x = tl.where(inside, x - tl.load(mean_ptr + row, mask=row < rows, other=0.0)[:, None], 0.0)
        normed = x * rstd[:, None]
        dnormed = dy
        if AFFINE:
            dweight += dy * normed
            dnormed = dy * weight[None, :]
        dx = dnormed - normed * (tl.sum(dnormed * normed, axis=1) / size)[:, None]
        if LAYER:
            dbias += dy
            dx -= (tl.sum(dnormed, axis=1) / size)[:, None]
        dx *= rstd[:, None]
        if ADD:
            dx += tl.load(dtotal_ptr + flat, mask=inside, other=0.0).to(TYPE)
        tl.store(dx_ptr + flat, dx.to(dx_ptr.dtype.element_ty), mask=inside)
    if AFFINE:
        own = tl.program_id(0) * size + column
        tl.store(dweight_ptr + own, tl.sum(dweight, axis=0), mask=column < size)
        if LAYER:
            tl.store(dbias_ptr + own, tl.sum(dbias, axis=0), mask=column < size)


def _forward(
    x: Tensor, branch: Tensor | None, weight: Tensor | None, bias: Tensor | None, layer: bool, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x + branch, or nothing without a branch; its norm; mean; 1 / deviation); layer: a layer norm.

    weight, bias: None: the norm has no parameters.
    """
    total, y, mean, rstd = outputs = _outputs(x, branch, layer)
    size = x.shape[-1]
    rows = x.numel() // max(size, 1)
    require_shape("the branch", branch, *x.shape)
    require_shape("the weight", weight, size)
    require_shape("the bias", bias, size)
    if rows == 0:
        return outputs
    of_x = Rows.of(x)
    of_branch = of_x if branch is None else Rows.of(branch)
    tile = Tile.of(size, rows)
    _forward_kernel[(triton.cdiv(rows, tile.rows),)](
        of_x.tensor, of_branch.tensor, _or(weight, x), _or(bias, x), total, y, mean, rstd,
        rows, size, *of_x[1:], *of_branch[1:],
        EPS=eps, ADD=branch is not None, LAYER=layer, AFFINE=weight is not None, TYPE=arithmetic(x),
        ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return outputs


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A tensor to give to a kernel, which does not read it where it is `other`."""
    return other if tensor is None else tensor


def _outputs(x: Tensor, branch: Tensor | None, layer: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory for the outputs of `_forward`, contiguous."""
    statistics = torch.promote_types(x.dtype, torch.float32)
    dtype = x.dtype if branch is None else torch.promote_types(x.dtype, branch.dtype)
    shape = x.shape[:-1]
    return (
        x.new_empty(x.shape if branch is not None else (0,), dtype=dtype),
        x.new_empty(x.shape, dtype=dtype),
        x.new_empty(shape if layer else (0,), dtype=statistics),
        x.new_empty(shape, dtype=statistics),
    )


def _backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    layer: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias (empty where there is none), from those of the norm and of the sum."""
    outputs = dx, *of_parameters = _empty_gradients(dy, dtotal, x, weight, mean, rstd, layer)
    size = x.shape[-1]
    rows = x.numel() // max(size, 1)
    if rows == 0:
        for each in of_parameters:
            each.zero_()
        return outputs
    of_x = Rows.of(x)
    dy, dtotal = dy.contiguous(), dtotal if dtotal is None else dtotal.contiguous()
    tile = Tile.of(size, rows)
    programs = resident_programs(x.device, triton.cdiv(rows, tile.rows))
    kinds = 0 if weight is None else 2 if layer else 1
    sums = torch.empty(kinds, programs, size, dtype=rstd.dtype, device=x.device)
    _backward_kernel[(programs,)](
        dy, _or(dtotal, dy), of_x.tensor, _or(weight, x), mean, rstd, dx,
        sums[0] if kinds else sums, sums[-1] if kinds else sums, rows, size, *of_x[1:],
        ADD=dtotal is not None, LAYER=layer, AFFINE=weight is not None, TYPE=arithmetic(x),
        ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    for out, each in zip(of_parameters, sums.sum(1), strict=False):
        out.copy_(each)
    return outputs


def _empty_gradients(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    layer: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if weight is None:
        return dx, x.new_empty(0), x.new_empty(0)
    return dx, torch.empty_like(weight), weight.new_empty(weight.shape if layer else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, weight, _, layer, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(x if branch is None else total, weight, mean, rstd)
    ctx.add, ctx.layer = branch is not None, layer
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dtotal: Tensor | None, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    if dy is None:  # only the sum was used
        return dtotal, dtotal if ctx.add else None, None, None, None, None
    dx, dweight, dbias = _norm_backward(dy, dtotal if ctx.add else None, x, weight, mean, rstd, ctx.layer)
    affine = weight is not None
    return (
        dx, dx if ctx.add else None, dweight if affine else None, dbias if affine and ctx.layer else None,
        None, None,
    )  # fmt: skip


_norm_backward = Operation("norm_backward", _backward, _empty_gradients)
_norm = Operation(
    "norm", _forward, lambda x, branch, weight, bias, layer, eps: _outputs(x, branch, layer)
).with_gradients(_keep, _gradients)


@in_memory_order
def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See `llmkit.kernels.norm.rms_norm`."""
    return _norm(x, None, weight, None, False, eps)[1]


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """See `llmkit.kernels.norm.add_rms_norm`."""
    return _norm(x, branch, weight, None, False, eps)[:2]


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See `llmkit.kernels.norm.layer_norm`."""
    return _norm(x, None, weight, bias, True, eps)[1]


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """See `llmkit.kernels.norm.add_layer_norm`."""
    return _norm(x, branch, weight, bias, True, eps)[:2]
