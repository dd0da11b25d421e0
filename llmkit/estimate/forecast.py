"""What a run is expected to take, and why it takes longer where it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llmkit.estimate.step_parts import IN_STAGE
from llmkit.estimate.step_time import StepEstimate

APART = 0.30
"""Relative difference from which on a cause is named."""
CROWDED = 0.75
"""Share of its threads' time below which a process on a CPU shares the processor with others."""
LARGE = 0.20
"""Share of the prediction from which on a part of it may be the cause."""


@dataclass(frozen=True)
class Measured:
    """Means of steps, seconds of one. data: waiting for batches. other: between steps. communication: waited
    for; optimizer: of the update; both None where the engine cannot tell. processor: share of its threads'
    time that the process had on a CPU; None on a GPU.
    """

    steps: int
    seconds: float
    data: float
    other: float
    communication: float | None
    optimizer: float | None
    processor: float | None = None


SENDS = (*IN_STAGE, "gradients and weights", "offload")


def sums_of(step: StepEstimate) -> dict[str, float]:
    """Seconds of the parts of an estimate, in as few groups as a run can tell apart, and a few more."""
    parts = {part.name: part.value for part in step.parts}
    found = {name: parts.pop(name, 0.0) for name in ("optimizer", "recompute", "launching")}
    found["communication"] = sum(parts.pop(name, 0.0) for name in SENDS)
    return {"computing": sum(parts.values()), **found}


def likely_cause(step: StepEstimate, measured: Measured) -> str:
    """Why steps take another time than was predicted, where they differ by more than `APART`; else ""."""
    ratio, excess = measured.seconds / step.seconds, measured.seconds - step.seconds
    if abs(ratio - 1.0) <= APART:
        return ""
    if excess < 0:
        return "the model of time is too slow for this run: nothing is wrong with it"
    parts = sums_of(step)
    known = {
        "waiting for data": measured.data,
        "what is done between steps: hooks, records, the watchdog": measured.other,
        "communication that no computing hides, or waiting for slower ranks": (
            0.0 if measured.communication is None else measured.communication - parts["communication"]
        ),
        "the update of the weights": (
            0.0 if measured.optimizer is None else measured.optimizer - parts["optimizer"]
        ),
    }
    most = max(known, key=lambda name: known[name])
    if known[most] >= excess / 2:
        return f"{most} ({known[most]:.3g} s a step)"
    if measured.processor is not None and measured.processor < CROWDED:
        return f"other processes: this one had {measured.processor:.0%} of its threads' time"
    for name, why in (
        (
            "launching",
            "the host, which starts many small kernels: a larger micro-batch or torch.compile helps",
        ),
        ("recompute", "recomputation (parallel.activation_checkpointing), which is a large part of a step"),
    ):
        if parts[name] >= LARGE * step.seconds:
            return why
    return "computing: the device is slower than assumed (power limit, heat, others), or kernels are"


def comparison(step: StepEstimate, measured: Measured) -> dict[str, Any]:
    """The fields of the event `predicted`."""
    rounded = {name: round(value, 6) for name, value in sums_of(step).items()}
    phases = {name: getattr(measured, name) for name in ("data", "other", "communication", "optimizer")}
    return {
        "predicted": round(step.seconds, 6),
        "low": round(step.low, 6),
        "high": round(step.high, 6),
        "measured": round(measured.seconds, 6),
        "steps": measured.steps,
        "difference": round(measured.seconds / step.seconds - 1.0, 4),
        "cause": likely_cause(step, measured) or None,
        "predicted_parts": rounded,
        "measured_parts": {name: round(value, 6) for name, value in phases.items() if value is not None},
    }


def show(step: StepEstimate) -> str:
    """One line for the start of a run."""
    text = f"{step.seconds:.3g} s a step ({step.low:.3g} to {step.high:.3g})"
    text += f", {step.tokens_per_second / step.devices:,.0f} tokens/s"
    text += " a device" if step.devices > 1 else ""
    if step.mfu is not None:
        text += f", MFU {step.mfu:.0%}"
    largest = sorted(step.parts, key=lambda part: -part.value)[:3]
    return f"{text}; {', '.join(f'{part.name} {part.value / step.seconds:.0%}' for part in largest)}"
