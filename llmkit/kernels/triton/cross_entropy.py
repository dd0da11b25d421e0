"""The cross-entropy of rows of logits, in place: a program a row, which it reads twice, the second time from
the cache. Contract: `llmkit.kernels.head_loss_rows.RowPass`; with it the form of the head and the loss is
`llmkit.kernels.head_loss_chunks`.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmkit.kernels import head_loss_chunks
from llmkit.kernels.head_loss_rows import ROW_PASSES, Products, RowSpec

BLOCK = 8192
"""Columns that a program holds at a time."""
LOWEST = torch.finfo(torch.float32).min


@triton.jit
def _capped(x, SOFTCAP: tl.constexpr):
    if SOFTCAP != 0.0:  # softcap * tanh(x / softcap)
        return SOFTCAP * (2.0 * tl.sigmoid(x * (2.0 / SOFTCAP)) - 1.0)
    else:
        return x


@triton.jit
def _rows_kernel(
    x_ptr, column_ptr, weights_ptr, log_sum_ptr, found_ptr, rows, columns, valid, vocab_size,
    SOFTCAP: tl.constexpr, Z_LOSS: tl.constexpr, SMOOTHING: tl.constexpr,
    STATISTICS: tl.constexpr, GRADIENT: tl.constexpr, LOWEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * columns
    target_column = tl.load(column_ptr + row)
    if STATISTICS:
        here = target_column >= 0
        inside = here & (target_column < valid)
        target = tl.load(x_ptr + target_column, mask=inside, other=float("-inf")).to(tl.float32)
        target = tl.where(here, tl.where(inside, _capped(target, SOFTCAP), target), 0.0)
        largest = tl.full((), LOWEST, tl.float32)  # finite, should all columns be padding
        total = tl.full((), 0.0, tl.float32)
        sums = tl.full((), 0.0, tl.float32)
        for start in range(0, valid, BLOCK):
            column = start + tl.arange(0, BLOCK)
            # Padding is read, too: rows end at multiples of 16 bytes, read at a time; tokens need not.
            x = tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
            x = tl.where(column < valid, _capped(x, SOFTCAP), float("-inf"))
            if SMOOTHING != 0.0:
                total += tl.sum(tl.where(column < valid, x, 0.0), axis=0)
            new = tl.maximum(largest, tl.max(x, axis=0))
            sums = sums * tl.exp(largest - new) + tl.sum(tl.exp(x - new), axis=0)
            largest = new
        log_sum = largest + tl.log(sums)
        if GRADIENT:
            tl.store(found_ptr + row, log_sum)
            tl.store(found_ptr + rows + row, target)
            tl.store(found_ptr + 2 * rows + row, total)
        else:
            tl.store(found_ptr + row, largest)
            tl.store(found_ptr + rows + row, sums)
            tl.store(found_ptr + 2 * rows + row, target)
            tl.store(found_ptr + 3 * rows + row, total)
    else:
        log_sum = tl.load(log_sum_ptr + row)
    if GRADIENT:
        coefficient = tl.load(weights_ptr + row)
        at_target = coefficient
        evenly = tl.full((), 0.0, tl.float32)
        if SMOOTHING != 0.0:
            smoothing = tl.load(weights_ptr + 2 * rows + row) * SMOOTHING
            at_target -= smoothing
            evenly = smoothing / vocab_size
        if Z_LOSS != 0.0:
            coefficient += 2.0 * Z_LOSS * log_sum * tl.load(weights_ptr + rows + row)
        tl.debug_barrier()  # no warp writes into the row before all have read the target's logit
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK)
            x = tl.load(x_ptr + column, mask=column < columns, other=0.0).to(tl.float32)
            capped = _capped(x, SOFTCAP)
            gradient = tl.exp(capped - log_sum) * coefficient - evenly
            gradient = tl.where(column == target_column, gradient - at_target, gradient)
            if SOFTCAP != 0.0:
                gradient *= 1.0 - (capped / SOFTCAP) * (capped / SOFTCAP)
            gradient = tl.where(column < valid, gradient, 0.0)
            tl.store(x_ptr + column, gradient.to(x_ptr.dtype.element_ty), mask=column < columns)


class TritonRows(Products):
    """See `RowPass`."""

    any_size = True

    def whole(self, x: Tensor, column: Tensor, weights: Tensor, spec: RowSpec) -> Tensor:
        """See `RowPass.whole`."""
        found = x.new_empty(3, len(x), dtype=torch.float32)
        self._launch(x, column, weights, found, found, spec, statistics=True, gradient=True)
        return found

    def statistics(self, x: Tensor, column: Tensor, spec: RowSpec) -> Tensor:
        """See `RowPass.statistics`."""
        found = x.new_empty(4, len(x), dtype=torch.float32)
        self._launch(x, column, found, found, found, spec, statistics=True, gradient=False)
        return found

    def gradient(self, x: Tensor, column: Tensor, weights: Tensor, log_sum: Tensor, spec: RowSpec) -> None:
        """See `RowPass.gradient`."""
        self._launch(x, column, weights, log_sum, log_sum, spec, statistics=False, gradient=True)

    @staticmethod
    def _launch(
        x: Tensor, column: Tensor, weights: Tensor, log_sum: Tensor, found: Tensor, spec: RowSpec,
        *, statistics: bool, gradient: bool,
    ) -> None:  # fmt: skip
        rows, columns = x.shape
        block = min(BLOCK, triton.next_power_of_2(columns))
        softcap, z_loss, smoothing = spec.terms
        if rows and not x.is_meta:  # of meta tensors there is nothing to compute
            _rows_kernel[(rows,)](
                x, column, weights, log_sum, found, rows, columns, spec.valid, spec.vocab_size,
                SOFTCAP=softcap, Z_LOSS=z_loss, SMOOTHING=smoothing, STATISTICS=statistics, GRADIENT=gradient,
                LOWEST=LOWEST, BLOCK=block, num_warps=max(1, min(16, block // 512)),
            )  # fmt: skip


ROW_PASSES["triton"] = TritonRows()
head_loss = partial(head_loss_chunks.head_loss, rows="triton")
