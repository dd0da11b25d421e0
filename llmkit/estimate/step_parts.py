"""The seconds of a step by part: computing, communication that nothing hides, the update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2

from llmkit.estimate.communication import (
    context_parallel,
    expert_parallel,
    gradients,
    host_traffic,
    inputs_to_host,
    pipeline,
    sharded_weights,
    tensor_parallel,
)
from llmkit.estimate.computing import Computing, computing, shared_expert, update_seconds
from llmkit.estimate.constants import FITTED, Constants
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.rates import GpuRates, Rates
from llmkit.estimate.workload import Workload

IN_STAGE = ("tensor parallelism", "context parallelism", "expert parallelism", "gathers of ZeRO-3")
"""Communication of each micro-batch, for which the other stages of a pipeline wait, too."""


@dataclass(frozen=True)
class StepParts:
    """Seconds of a step; those of `parts` add up to it. hidden: of communication, beside computing."""

    parts: Mapping[str, float]
    hidden: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Of the step."""
        return sum(self.parts.values())


def step_parts(
    work: Workload, fleet: Fleet, constants: Constants = FITTED, rates: Rates | None = None
) -> StepParts:
    """Seconds of a step of any workload, ours or a published one."""
    rates = rates or GpuRates(fleet.device)
    computed, micro = computing(work, rates), work.micro_batches
    nodes = max(1.0, work.world / fleet.devices_per_node)
    beside = computed.times(constants.overhead)  # communication is hidden by the time that computing takes
    shared = shared_expert(work, rates).times(constants.overhead)
    sends = {
        "tensor parallelism": tensor_parallel(work, fleet, beside).times(micro),
        "context parallelism": context_parallel(work, fleet, beside).times(micro),
        "expert parallelism": expert_parallel(work, fleet, shared).times(micro),
        "gathers of ZeRO-3": sharded_weights(work, fleet, beside).times(micro),
        "gradients and weights": gradients(work, fleet, beside),
        "offload": host_traffic(work, beside).plus(inputs_to_host(work, beside).times(micro)),
    }
    parts = _computed(computed, micro)
    parts["accumulation"] = rates.accumulated(work.trained, work.accumulates) * micro
    alone = sum(parts.values())
    parts["overhead"] = (constants.overhead - 1.0) * alone
    launched = rates.launched(computed.kernels) * micro
    parts["launching"] = launched if rates.waits else max(0.0, launched - alone * constants.overhead)
    parts["stragglers"] = constants.jitter * log2(nodes) * alone * constants.overhead
    hop, bubble = pipeline(work, fleet)
    staged = sum(parts.values()) + sum(sends[name].exposed for name in IN_STAGE) + hop * micro
    parts |= {name: sent.exposed for name, sent in sends.items()}
    parts["pipeline"] = bubble * staged + hop * micro
    if not work.offload:
        parts["optimizer"] = update_seconds(work, rates)
    return StepParts(_some(parts), _some({name: sent.hidden for name, sent in sends.items()}))


def _computed(computed: Computing, micro: float) -> dict[str, float]:
    """Parts of the computing of a step; what is computed again is a part of its own."""
    names = ("matmul", "attention", "pointwise", "head", "loss")
    passes = {name: getattr(computed, name) for name in names}
    parts = {name: (each.forward + each.backward) * micro for name, each in passes.items()}
    return parts | {"recompute": computed.layers.again * micro}


def _some(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: seconds for name, seconds in parts.items() if seconds}
