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
    EPS: tl.constexpr, ADD: tl.constexpr, LAYER: tl.constexpr, TYPE: tl.constexpr,
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
    weight = tl.load(weight_ptr + column, mask=column < size, other=0.0).to(TYPE)
    y = x * rstd[:, None] * weight[None, :]
    if LAYER:
        y += tl.load(bias_ptr + column, mask=column < size, other=0.0).to(TYPE)[None, :]
    tl.store(y_ptr + flat, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward_kernel(
    dy_ptr, dtotal_ptr, x_ptr, weight_ptr, mean_ptr, rstd_ptr, dx_ptr, dweight_ptr, dbias_ptr,
    rows, size, x_inner, x_outer_stride, x_stride,
    ADD: tl.constexpr, LAYER: tl.constexpr, TYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, COLUMNS)
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
    own = tl.program_id(0) * size + column
    tl.store(dweight_ptr + own, tl.sum(dweight, axis=0), mask=column < size)
    if LAYER:
        tl.store(dbias_ptr + own, tl.sum(dbias, axis=0), mask=column < size)


def _forward(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x + branch, or nothing without a branch; its norm; mean; 1 / deviation): a layer norm if with bias."""
    total, y, mean, rstd = outputs = _outputs(x, branch, bias is not None)
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
        of_x.tensor, of_branch.tensor, weight, weight if bias is None else bias, total, y, mean, rstd,
        rows, size, *of_x[1:], *of_branch[1:],
        EPS=eps, ADD=branch is not None, LAYER=bias is not None, TYPE=arithmetic(x),
        ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    return outputs


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
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, layer: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias (empty for an RMS norm), from those of the norm and of the sum."""
    size = x.shape[-1]
    rows = x.numel() // max(size, 1)
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    if rows == 0:
        return dx, torch.zeros_like(weight), torch.zeros_like(weight) if layer else weight.new_empty(0)
    of_x = Rows.of(x)
    dy, dtotal = dy.contiguous(), dtotal if dtotal is None else dtotal.contiguous()
    tile = Tile.of(size, rows)
    programs = resident_programs(x.device, triton.cdiv(rows, tile.rows))
    sums = torch.empty(2 if layer else 1, programs, size, dtype=rstd.dtype, device=x.device)
    _backward_kernel[(programs,)](
        dy, dy if dtotal is None else dtotal, of_x.tensor, weight, mean, rstd, dx, sums[0], sums[-1],
        rows, size, *of_x[1:],
        ADD=dtotal is not None, LAYER=layer, TYPE=arithmetic(x),
        ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.warps,
    )  # fmt: skip
    summed = sums.sum(1).to(weight.dtype)
    return dx, summed[0].clone() if layer else summed[0], summed[1].clone() if layer else weight.new_empty(0)


def _empty_gradients(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, layer: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty_like(x, memory_format=torch.contiguous_format)
    return dx, torch.empty_like(weight), weight.new_empty(weight.shape if layer else (0,))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, weight, bias, _ = inputs
    total, _, mean, rstd = output
    ctx.save_for_backward(x if branch is None else total, weight, mean, rstd)
    ctx.add, ctx.layer = branch is not None, bias is not None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dtotal: Tensor | None, dy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, mean, rstd = ctx.saved_tensors
    if dy is None:  # only the sum was used
        return dtotal, dtotal if ctx.add else None, None, None, None
    dx, dweight, dbias = _norm_backward(dy, dtotal if ctx.add else None, x, weight, mean, rstd, ctx.layer)
    return dx, dx if ctx.add else None, dweight, dbias if ctx.layer else None, None


_norm_backward = Operation("norm_backward", _backward, _empty_gradients)
_norm = Operation(
    "norm", _forward, lambda x, branch, weight, bias, eps: _outputs(x, branch, bias is not None)
).with_gradients(_keep, _gradients)


@in_memory_order
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `llmkit.kernels.norm.rms_norm`."""
    return _norm(x, None, weight, None, eps)[1]


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See `llmkit.kernels.norm.add_rms_norm`."""
    return _norm(x, branch, weight, None, eps)[:2]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See `llmkit.kernels.norm.layer_norm`."""
    return _norm(x, None, weight, bias, eps)[1]


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `llmkit.kernels.norm.add_layer_norm`."""
    return _norm(x, branch, weight, bias, eps)[:2]
