"""How long a step of a plan takes on a fleet, by part, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.config.shape import ModelShape
from llmkit.errors import UserError
from llmkit.estimate.constants import FITTED, Constants
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.part_sources import formula_of
from llmkit.estimate.rates import Rates
from llmkit.estimate.step_parts import step_parts
from llmkit.estimate.term import Term
from llmkit.estimate.workload import workload_of
from llmkit.monitor.flops import (
    causal_flops_per_token,
    recomputed_flops_per_token,
    train_flops_per_token,
    utilization,
)
from llmkit.plan import Plan

SURE, UNSURE = 0.15, 0.30
"""Relative uncertainty: of dense models on up to `KNOWN_RANKS` H100 or A100 with little tensor parallelism,
and of everything else (docs/plan.md has the errors that these are taken from)."""
KNOWN_RANKS, KNOWN_TENSOR = 1024, 4
KNOWN_DEVICES = ("h100", "a100")


@dataclass(frozen=True)
class StepEstimate:
    """A step of a plan on a fleet.

    parts: seconds that add up to the step. hidden: seconds of communication beside computing. spread:
    relative uncertainty; unsure: why it is not less. tokens: of the step. devices: of the plan. flops: of a
    token by the usual convention; causal: by that of causal attention; recomputed: beside them. peak: FLOP/s
    of a device.
    """

    parts: tuple[Term, ...]
    hidden: tuple[Term, ...]
    spread: float
    unsure: tuple[str, ...]
    tokens: int
    devices: int
    flops: float
    causal: float | None
    recomputed: float
    peak: float

    @property
    def seconds(self) -> float:
        """Of a step."""
        return sum(part.value for part in self.parts)

    @property
    def low(self) -> float:
        """Seconds of a step if all goes well."""
        return self.seconds * (1.0 - self.spread)

    @property
    def high(self) -> float:
        """Seconds of a step if it does not."""
        return self.seconds * (1.0 + self.spread)

    @property
    def tokens_per_second(self) -> float:
        """Of all devices."""
        return self.tokens / self.seconds

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilization, attention counted in full (PaLM): what most publish."""
        return self._share(self.flops)

    @property
    def mfu_causal(self) -> float | None:
        """The same, of causal attention what it needs; None for a registered model."""
        return None if self.causal is None else self._share(self.causal)

    @property
    def hfu(self) -> float | None:
        """Hardware FLOPs utilization: with what activation checkpointing computes again."""
        return self._share(self.flops + self.recomputed)

    def _share(self, flops: float) -> float | None:
        return utilization(self.tokens_per_second, flops, self.peak, self.devices)


def step_time(
    plan: Plan, fleet: Fleet, calibration: Rates | None = None, constants: Constants = FITTED
) -> StepEstimate:
    """The estimate of a complete plan on a fleet that has at least its processes.

    calibration: what was measured on the device, in place of the table's numbers. Raises UserError for a
    registered model, of whose layers nothing is known.
    """
    work = workload_of(plan)
    if work is None or not isinstance(plan.model, ModelShape):
        raise UserError(f"there is no estimate of time for the model type {plan.config.model.type}")
    found = step_parts(work, fleet, constants, calibration)
    unsure = tuple(_unsure(plan, fleet, calibrated=calibration is not None))
    length, layout = plan.config.data.sequence_length, plan.layout
    adapters = plan.num_trained if plan.config.train.lora.rank else 0
    how, every = layout.activation_checkpointing, layout.activation_checkpointing_every

    def term(part: str, name: str, value: float) -> Term:
        return Term(name, value, "s", *formula_of(part, work, fleet, constants))

    return StepEstimate(
        tuple(term(name, name, value) for name, value in found.parts.items()),
        tuple(term(name, f"{name}, hidden", value) for name, value in found.hidden.items()),
        UNSURE if unsure else SURE, unsure, plan.tokens_per_step, layout.world_size,
        train_flops_per_token(plan.model, length, adapters),
        causal_flops_per_token(plan.model, [length], adapters),
        recomputed_flops_per_token(plan.model, length, how, every, adapters),
        fleet.device.peak("fp32" if plan.precision.compute == "fp32" else "bf16"),
    )  # fmt: skip


def _unsure(plan: Plan, fleet: Fleet, *, calibrated: bool) -> list[str]:
    """Why the errors against published runs say little, or much that is bad, of this plan."""
    found = []
    if not calibrated and fleet.device.name not in KNOWN_DEVICES:
        found.append(f"no published run was compared on {fleet.device.name}")
    if plan.precision.linear == "fp8":
        found.append("fp8")
    if plan.layout.tensor_parallel_size > KNOWN_TENSOR:
        found.append(f"tensor parallelism over {plan.layout.tensor_parallel_size} ranks")
    if plan.layout.world_size > KNOWN_RANKS:
        found.append(f"{plan.layout.world_size:,} ranks")
    if plan.layout.offload == "cpu":
        found.append("offloading was never measured")
    if plan.layout.context_parallel_size > 1:
        found.append("shared rows were never measured")
    if isinstance(plan.model, ModelShape) and plan.model.expert_layers:
        found.append("no mixture of experts was compared")
    return found
