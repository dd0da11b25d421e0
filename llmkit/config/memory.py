"""Memory of weights, gradients and optimizer state, which does not depend on the batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from llmkit.config.ema_section import Ema
from llmkit.config.groups import assign
from llmkit.config.operators import QUANTISED, QUANTISED_BLOCK
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.parameters import FullTensor
from llmkit.precision import BYTES, Precision
from llmkit.registry import find


@dataclass(frozen=True)
class State:
    """Bytes of one process.

    device: of weights, masters and moments where it computes; gradients: of gradients, which offloading
    takes to the host as they come; host: of what offloading keeps there. weights: of the weights, which are
    part of one of them.
    """

    device: int
    gradients: int
    host: int = 0
    weights: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.device + self.gradients + self.host

    @property
    def optimizer(self) -> int:
        """Of masters and moments."""
        return self.total - self.gradients - self.weights


def state_bytes(
    parameters: int,
    precision: Precision,
    moments: float,
    *,
    frozen: int = 0,
    quantised: int = 0,
    data_parallel_size: int = 1,
    tensor_parallel_size: int = 1,
    zero_stage: int = 0,
    offload: str = "none",
) -> State:
    """Returns a lower bound of the bytes of weights, gradients, masters and moments.

    Activations and communication buffers are not included. parameters: those that are trained; frozen:
    others. quantised: bytes of weights beside both that are kept in fewer bits, on all data-parallel ranks
    and where they are used. moments: see `kept_tensors`.
    """
    weight, gradient, kept = parameter_bytes(precision, moments)
    shared = [data_parallel_size if zero_stage >= stage else 1 for stage in (1, 2, 3)]
    mine, all_mine = parameters / tensor_parallel_size, (parameters + frozen) / tensor_parallel_size
    optimizer_state, gradients = (
        int(mine * size / ranks) for size, ranks in zip((kept, gradient), shared[:2], strict=True)
    )
    weights = int(all_mine * weight / shared[2])
    kept_here = quantised // tensor_parallel_size
    if offload == "none":
        return State(weights + optimizer_state + kept_here, gradients, weights=weights + kept_here)
    if zero_stage < 3:
        return State(weights + kept_here, gradients, optimizer_state, weights + kept_here)
    return State(kept_here, gradients, weights + optimizer_state, weights + kept_here)


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
    return sum(_moments_of(group.optimizer) * size for group, size in kept.items()) / sum(sizes.values())


def _moments_of(optimizer: str) -> int:
    registered = find("optimizer", optimizer)
    if registered is not None:
        return len(getattr(registered.make, "states", ()))
    return 1 if optimizer == "muon" else 2


def show_bytes(size: float) -> str:
    """Formats a number of bytes, as in "1,024 bytes", "12.5 MiB", "19,488.9 GiB"."""
    if size < 2**16:
        return f"{int(size):,} bytes"
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.1f} GiB"
