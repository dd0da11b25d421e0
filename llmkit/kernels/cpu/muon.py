"""Muon's update on CPUs with AVX-512 BF16, by kernels of our own (`muon.cpp`).

oneDNN takes small matrices one after the other at a third of the matrix rate; here a matrix stays in the
cache for all rounds, and of symmetric products half is computed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmkit.kernels import muon as plain
from llmkit.kernels.cpu.load import enough_memory, load
from llmkit.kernels.muon import Coefficients


def look_ahead(
    gradients: Sequence[Tensor], buffers: Sequence[Tensor], beta: float,
    *, scale: Tensor | None, skipped: Tensor, dtype: torch.dtype,
) -> list[Tensor]:  # fmt: skip
    """See `llmkit.kernels.muon.look_ahead`, which is what other types than bf16 get."""
    if dtype != torch.bfloat16 or not _plain((*gradients, *buffers)):
        return plain.look_ahead(gradients, buffers, beta, scale=scale, skipped=skipped, dtype=dtype)
    results = [torch.empty_like(each, dtype=dtype) for each in buffers]
    _library().look_ahead(
        _addresses(gradients), _addresses(buffers), _addresses(results), _sizes(buffers), len(results),
        1.0 if scale is None else float(scale), beta, int(skipped), torch.get_num_threads(),
    )  # fmt: skip
    return results


def orthogonalise(matrices: Sequence[Tensor], coefficients: Coefficients) -> list[Tensor]:
    """See `llmkit.kernels.muon.orthogonalise`, which is what other types than bf16 get."""
    if any(each.dtype != torch.bfloat16 for each in matrices):
        return plain.orthogonalise(matrices, coefficients)
    matrices = [each.contiguous() for each in matrices]
    results = [torch.empty_like(each) for each in matrices]
    numbers = [number for each in coefficients for number in each]
    _library().orthogonalise(
        _addresses(matrices), _addresses(results), _integers(each.shape[0] for each in matrices),
        _integers(each.shape[1] for each in matrices), len(matrices),
        (ctypes.c_float * len(numbers))(*numbers), len(coefficients), torch.get_num_threads(),
    )  # fmt: skip
    return results


def descend(
    weights: Sequence[Tensor], updates: Sequence[Tensor], sizes: Sequence[float], decays: Sequence[float],
    *, skipped: Tensor, rounded: Sequence[Tensor],
) -> None:  # fmt: skip
    """See `llmkit.kernels.muon.descend`, which is what other types than bf16 get."""
    halves = (*updates, *rounded)
    if any(each.dtype != torch.bfloat16 for each in halves) or not _plain((*weights, *halves)):
        return plain.descend(weights, updates, sizes, decays, skipped=skipped, rounded=rounded)
    if int(skipped):
        return None
    numbers = ctypes.c_float * len(weights)
    _library().descend(
        _addresses(weights), _addresses(updates), _addresses(rounded) if rounded else None, _sizes(weights),
        len(weights), numbers(*(1.0 - decay for decay in decays)), numbers(*sizes), torch.get_num_threads(),
    )  # fmt: skip
    return None


def _plain(tensors: Iterable[Tensor]) -> bool:
    return all(each.is_contiguous() for each in tensors)


def _addresses(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*(each.data_ptr() for each in tensors))


def _integers(numbers: Iterable[int]) -> Any:
    values = list(numbers)
    return (ctypes.c_int64 * len(values))(*values)


def _sizes(tensors: Sequence[Tensor]) -> Any:
    return _integers(each.numel() for each in tensors)


@cache
def _library() -> ctypes.CDLL:
    library: Any = load("muon.cpp")
    pointer, size, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    library.look_ahead.argtypes = [pointer, pointer, pointer, pointer, size, real, real, number, number]
    library.orthogonalise.argtypes = [pointer, pointer, pointer, pointer, size, pointer, number, number]
    library.descend.argtypes = [pointer, pointer, pointer, pointer, size, pointer, pointer, number]
    library.look_ahead.restype = library.descend.restype = None
    library.orthogonalise.restype, library.orthogonalise.errcheck = number, enough_memory
    return library
