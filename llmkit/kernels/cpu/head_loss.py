"""Linear + cross-entropy on CPUs with AVX-512 BF16: `llmkit.kernels.head_loss_chunks`, with own kernels
for rows of logits (`cross_entropy.cpp`) and the gradients of weight and hidden states (`gradients.cpp`).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import LossSum
from llmkit.kernels import head_loss_chunks
from llmkit.kernels.cpu.linear import multiply_into, multiply_rows_into
from llmkit.kernels.cpu.load import enough_memory, load
from llmkit.kernels.head_loss_rows import ROW_PASSES, RowSpec

_WHOLE, _STATISTICS, _GRADIENT = range(3)


class Avx512Rows:
    """See `RowPass`; x is in bf16."""

    any_size = True

    def whole(self, x: Tensor, column: Tensor, weights: Tensor, spec: RowSpec) -> Tensor:
        """See `RowPass.whole`."""
        found = x.new_empty(3, len(x), dtype=torch.float32)
        self._call(_WHOLE, x, column, weights, found, found, spec)
        return found

    def statistics(self, x: Tensor, column: Tensor, spec: RowSpec) -> Tensor:
        """See `RowPass.statistics`."""
        found = x.new_empty(4, len(x), dtype=torch.float32)
        self._call(_STATISTICS, x, column, found, found, found, spec)
        return found

    def gradient(self, x: Tensor, column: Tensor, weights: Tensor, log_sum: Tensor, spec: RowSpec) -> None:
        """See `RowPass.gradient`."""
        self._call(_GRADIENT, x, column, weights, log_sum, log_sum, spec)

    def of_hidden(self, gradient: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See `RowPass.of_hidden`."""
        return multiply_rows_into(gradient, weight, out)

    def product(self, gradient: Tensor, hidden: Tensor) -> Tensor:
        """See `RowPass.product`."""
        result = hidden.new_empty(gradient.shape[1], hidden.shape[1])
        multiply_into(gradient, hidden, result, add=False)
        return result

    def add_product(self, total: Tensor | None, gradient: Tensor, hidden: Tensor) -> Tensor:
        """See `RowPass.add_product`."""
        first = total is None
        if total is None:
            total = hidden.new_empty(gradient.shape[1], hidden.shape[1], dtype=torch.float32)
        multiply_into(gradient, hidden, total, add=not first)
        return total

    @staticmethod
    def _call(
        number: int, x: Tensor, column: Tensor, weights: Tensor, log_sum: Tensor, found: Tensor, spec: RowSpec
    ) -> None:
        if x.is_meta:  # there is nothing to compute
            return
        rows, columns = x.shape
        if rows and int(column.max()) >= columns:
            raise IndexError(f"a label is {int(column.max())}, beyond the {columns} tokens of the vocabulary")
        sizes = (ctypes.c_int64 * 3)(columns, spec.valid, spec.vocab_size)
        _library().cross_entropy(
            x.data_ptr(), rows, sizes, (ctypes.c_double * 3)(*spec.terms), column.data_ptr(),
            weights.data_ptr(), log_sum.data_ptr(), found.data_ptr(), number, torch.get_num_threads(),
        )  # fmt: skip


@cache
def _library() -> ctypes.CDLL:
    library: Any = load("cross_entropy.cpp")
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.cross_entropy.argtypes = [
        pointer, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64), ctypes.POINTER(ctypes.c_double),
        pointer, pointer, pointer, pointer, number, number,
    ]  # fmt: skip
    library.cross_entropy.restype, library.cross_entropy.errcheck = number, enough_memory
    return library


ROW_PASSES["avx512"] = Avx512Rows()


def head_loss(hidden: Tensor, weight: Tensor, *arguments: Any, **options: Any) -> LossSum:
    """See `llmkit.kernels.head_loss.head_loss`. Of other types than bf16 PyTorch passes over the rows."""
    rows = "avx512" if hidden.dtype == weight.dtype == torch.bfloat16 else ""
    return head_loss_chunks.head_loss(hidden, weight, *arguments, **options, rows=rows)
