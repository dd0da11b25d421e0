"""Memory of weights, gradients and optimizer state, which does not depend on the batch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from llmkit.config.custom_model import AnyModel
from llmkit.precision import BYTES, Precision
from llmkit.registry import find


@dataclass(frozen=True)
class State:
    """Bytes of one process.

    device: of weights, masters and moments where it computes; gradients: of gradients, which offloading
    takes to the host as they come; host: of what offloading keeps there.
    """

    device: int
    gradients: int
    host: int = 0


def state_bytes(
    shape: AnyModel,
    precision: Precision,
    optimizers: Collection[str],
    *,
    data_parallel_size: int = 1,
    tensor_parallel_size: int = 1,
    zero_stage: int = 0,
    offload: str = "none",
) -> State:
    """Returns a lower bound of the bytes of weights, gradients, masters and moments.

    Activations and communication buffers are not included. optimizers: see `Optimizer.rules`.
    """
    weight, gradient, kept = parameter_bytes(precision, optimizers)
    shared = [data_parallel_size if zero_stage >= stage else 1 for stage in (1, 2, 3)]
    mine = shape.num_parameters / tensor_parallel_size
    optimizer_state, gradients, weights = (
        int(mine * size / ranks) for size, ranks in zip((kept, gradient, weight), shared, strict=True)
    )
    if offload == "none":
        return State(weights + optimizer_state, gradients)
    if zero_stage < 3:
        return State(weights, gradients, optimizer_state)
    return State(0, gradients, weights + optimizer_state)


def parameter_bytes(precision: Precision, optimizers: Collection[str]) -> tuple[int, int, int]:
    """Returns the bytes per parameter of the weight, of its gradient, and of its master and moments."""
    kept = _moments(optimizers) + precision.keeps_masters
    return BYTES[precision.weights], BYTES[precision.reduction], kept * BYTES[precision.masters]


def checkpoint_bytes(optimizers: Collection[str]) -> int:
    """Returns the bytes per parameter of a checkpoint: its fp32 value and moments."""
    return BYTES["fp32"] * (1 + _moments(optimizers))


def _moments(optimizers: Collection[str]) -> int:
    """Moments per parameter, at least: Muon has AdamW's two for all but the hidden matrices."""
    return min(map(_moments_of, optimizers))


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
