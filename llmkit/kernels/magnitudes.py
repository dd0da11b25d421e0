"""How many numbers there are of each magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST, LARGEST, STEP = -40, 8, 2
EDGES = (0.0, *(2.0**power for power in range(LEAST, LARGEST + 1, STEP)))
"""Of the ranges of magnitudes; the last range has what is larger, too."""
RANGES = len(EDGES) - 1
_BIAS, _MANTISSA_BITS, _NOT_FINITE = 127, 23, 255


def count_magnitudes(tensors: Sequence[Tensor]) -> Tensor:
    """(RANGES,) int64: how many elements of fp32 tensors lie in each range; what is not finite lies in none.

    On a GPU each edge is compared with all elements, since a histogram would wait for the device, or depend
    on the order of its additions; on a CPU the exponents are counted, in a sixth of that time.
    """
    flat = [tensor.detach().reshape(-1) for tensor in tensors]
    values = flat[0] if len(flat) == 1 else torch.cat(flat)
    return _by_exponent(values) if values.is_cpu else _by_edges(values)


def _by_exponent(values: Tensor) -> Tensor:
    exponents = (values.view(torch.int32) >> _MANTISSA_BITS) & 255  # the sign's bit is cut off
    counts = torch.bincount(exponents, minlength=256)[:_NOT_FINITE]
    ranges = torch.div(torch.arange(_NOT_FINITE) - (_BIAS + LEAST), STEP, rounding_mode="floor") + 1
    return torch.zeros(RANGES, dtype=torch.int64).index_add_(0, ranges.clamp(0, RANGES - 1), counts)


def _by_edges(values: Tensor) -> Tensor:
    magnitudes = values.abs()
    magnitudes.masked_fill_(~magnitudes.isfinite(), -1.0)
    above = torch.stack([torch.count_nonzero(magnitudes >= edge) for edge in EDGES[:-1]])
    return above - torch.cat((above[1:], above.new_zeros(1)))
