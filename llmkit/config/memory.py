"""Bytes of a parameter and of its optimizer state, whatever the layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from llmkit.config.ema_section import Ema
from llmkit.config.groups import assign
from llmkit.config.operators import QUANTISED, QUANTISED_BLOCK
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.parameters import FullTensor
from llmkit.precision import BYTES, Precision
from llmkit.registry import find


def quantised_bytes(tensors: Iterable[FullTensor], form: str) -> int:
    """Returns the bytes of matrices in one of the forms `QUANTISED`, with their scales."""
    block = QUANTISED_BLOCK * QUANTISED[form] // 8 + BYTES["fp32"]
    return sum(tensor.shape[0] * -(-tensor.shape[1] // QUANTISED_BLOCK) * block for tensor in tensors)


def parameter_bytes(precision: Precision, moments: float) -> tuple[int, int, float]:
    """Returns the bytes per parameter of the weight, of its gradient, and of its master with what is kept
    beside it (moments: see `kept_tensors`)."""
    kept = moments + precision.keeps_masters
    return BYTES[precision.weights], BYTES[precision.reduction], kept * BYTES[precision.masters]


def checkpoint_bytes(moments: float) -> float:
    """Returns the bytes per parameter of a checkpoint: its fp32 value with what is kept beside it (moments:
    see `kept_tensors`)."""
    return BYTES["fp32"] * (1 + moments)


def kept_tensors(tensors: Sequence[FullTensor], optimizer: Optimizer, ema: Ema) -> float:
    """Returns the fp32 tensors per parameter, on average, that are kept beside weights and masters: moments,
    and a moving average of the weights."""
    return mean_moments(tensors, optimizer) + ema.on


def mean_moments(tensors: Sequence[FullTensor], optimizer: Optimizer) -> float:
    """Returns the moments per parameter, on average: Muon's matrices have one, what AdamW updates has two."""
    sizes = {tensor.name: prod(tensor.shape) for tensor in tensors}
    kept = {group: sum(sizes[name] for name in group.names) for group in assign(tensors, optimizer)}
    return sum(moments_of(group.optimizer) * size for group, size in kept.items()) / sum(sizes.values())


def moments_of(optimizer: str) -> int:
    """Returns how many fp32 values an optimizer keeps of each parameter, its master left out."""
    registered = find("optimizer", optimizer)
    if registered is not None:
        return len(getattr(registered.make, "states", ()))
    return 1 if optimizer == "muon" else 2


def show_bytes(size: float) -> str:
    """Formats a number of bytes, as in "1,024 bytes", "12.5 MiB", "19,488.9 GiB"."""
    if size < 2**16:
        return f"{int(size):,} bytes"
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"
