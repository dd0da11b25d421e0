"""Memory that a plan needs of each device and of its host, by part, for the fullest rank.

All ranks of a layout keep as many bytes (`llmkit.plan.state_memory`), so that any of them is the fullest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llmkit.config.derive import divisors
from llmkit.config.memory import show_bytes
from llmkit.config.shape import ModelShape
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.host_memory import CHECKPOINT_COPY, host_terms
from llmkit.estimate.term import Term
from llmkit.plan.activations import training_parts
from llmkit.plan.memory import (
    COMMUNICATOR,
    FRAGMENTATION,
    Memory,
    arithmetic,
    groups_of_ranks,
    memory,
    with_losses,
)
from llmkit.plan.plan import Plan

GIB = 2**30
CONTEXT = int(0.75 * GIB)
"""Of a GPU: CUDA's context with loaded kernels, and cuBLAS's workspaces. Assumed; 0.5 to 1 GiB is usual."""
STATE_SOURCE = "llmkit/plan/state_memory.py; compared with what engines allocate in every case of parity"
KEPT_SOURCE = "llmkit/plan/activations.py; tests count the tensors that autograd saves"


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of the fullest rank, a term in bytes for each part.

    device: on the device that computes, at the largest moment of a step. host: of one process beside it, and
    on a CPU nothing. available: bytes of the device, or of the host for a process on a CPU; host_available:
    of the host for a process beside a device. least: of the device, what a step takes at least. known:
    whether activations are among the parts; of registered models nothing is known of them.
    largest_micro_batch: that fits the device; 0 where none does, or nothing is known.
    """

    device: tuple[Term, ...]
    host: tuple[Term, ...]
    available: int
    host_available: float
    least: int
    known: bool
    largest_micro_batch: int

    @property
    def device_bytes(self) -> int:
        """All of the device's parts."""
        return int(sum(term.value for term in self.device))

    @property
    def host_bytes(self) -> int:
        """All of the host's parts."""
        return int(sum(term.value for term in self.host))

    @property
    def fits(self) -> bool:
        """Whether a step fits into the device, and what is beside it into the host, by estimate."""
        return self.missing() == (0.0, 0.0)

    def missing(self, spare: float = 0.0) -> tuple[float, float]:
        """Bytes that the device and the host lack, with a share of each that is to stay free.

        A copy of a checkpoint is not asked for: where there is no memory for it, training waits for the disk.
        """
        device = _needed(self.device) - (1.0 - spare) * self.available
        return max(0.0, device), max(0.0, _needed(self.host) - (1.0 - spare) * self.host_available)

    def has_copy(self, spare: float = 0.0) -> bool:
        """Whether there is memory for a copy of a checkpoint, if one is asked for."""
        device = self.device_bytes <= (1.0 - spare) * self.available
        return device and self.host_bytes <= (1.0 - spare) * self.host_available

    @property
    def cannot_fit(self) -> bool:
        """Whether it cannot, whatever is wrong with the estimate: training refuses it then."""
        return self.least > self.available


def _needed(terms: Sequence[Term]) -> float:
    return sum(term.value for term in terms if term.name != CHECKPOINT_COPY)


def memory_of(plan: Plan, fleet: Fleet, host_room: float = math.inf) -> MemoryEstimate:
    """The memory of a plan, whose layout is for as many processes as the fleet has devices.

    host_room: bytes of a host for each of its devices.
    """
    available = int(fleet.device.memory)
    now = memory(plan)
    on_cpu = fleet.device.architecture == "cpu"
    device, known = tuple(_device(plan, now, on_cpu)), now.activations is not None
    beside = int(sum(term.value for term in device)) - with_losses(now.activation_bytes, now.buffers)
    largest = _largest_micro_batch(plan, now, available - beside)
    host = () if on_cpu else (*_offloaded(plan, now), *host_terms(plan, now, on_cpu))
    return MemoryEstimate(device, host, available, host_room, now.least, known, largest)


def _largest_micro_batch(plan: Plan, needs: Memory, room: int) -> int:
    """The largest divisor of a rank's rows whose activations fit; 0 where nothing is known of them."""
    if not isinstance(plan.model, ModelShape):
        return 0
    parts = training_parts(plan.model, arithmetic(plan.config, plan.precision, plan.layout, plan.kernels))
    rows, length = plan.rows_per_rank, plan.config.data.row_length

    def fits(micro: int) -> bool:
        tokens = plan.layout.tokens_of(micro, length)
        return with_losses(sum(each.of(tokens) for each in parts.values()), needs.buffers) <= room

    return max(filter(fits, divisors(rows)), default=0)


def _device(plan: Plan, needs: Memory, on_cpu: bool) -> Iterator[Term]:
    """The parts on the device; none of them is empty."""
    state, layout = needs.state, plan.layout
    for name, size in state.parts.items():
        if size and (on_cpu or name not in state.on_host):
            yield _bytes(name, size, _state_formula(plan, name), STATE_SOURCE)
    tokens = layout.tokens_of(plan.micro_batch_size, plan.config.data.row_length)
    for kind, size in (needs.activations or {}).items():
        if size:
            text = f"{tokens:,} tokens of a micro-batch x {size / tokens:,.0f} bytes"
            yield _bytes(f"activations: {kind}", size, text, KEPT_SOURCE)
    read = "; read in DeepSpeed" * (layout.engine == "deepspeed")
    for kind, size in needs.buffers.items():
        yield _bytes(kind, size, show_bytes(size), f"llmkit/plan/communication_memory.py{read}")
    lost = with_losses(needs.activation_bytes, needs.buffers) - needs.activation_bytes
    yield _bytes("fragmentation", lost, f"{FRAGMENTATION:.0%} of what comes and goes in a step", "assumed")
    if on_cpu:
        yield from host_terms(plan, needs, on_cpu)
        return
    yield _bytes("CUDA", CONTEXT, "context, kernels, workspaces of a process", "assumed")
    if groups := groups_of_ranks(layout):
        text = f"{groups} groups of ranks x {show_bytes(COMMUNICATOR)}"
        yield _bytes("NCCL", groups * COMMUNICATOR, text, "assumed")


def _offloaded(plan: Plan, needs: Memory) -> Iterator[Term]:
    """The parts of the state that are on the host, beside the device."""
    state = needs.state
    for name in (each for each in state.parts if each in state.on_host and state.parts[each]):
        yield _bytes(name, state.parts[name], _state_formula(plan, name), f"offloaded; {STATE_SOURCE}")


def _state_formula(plan: Plan, name: str) -> str:
    layout, state = plan.layout, plan.state
    over = [f"tensor parallel {layout.tensor_parallel_size}"] * (layout.tensor_parallel_size > 1)
    over += [f"experts over {layout.expert_parallel_size}"] * (layout.expert_parallel_size > 1)
    shared = {"weights": 3, "gradients": 2}.get(name, 1)
    if layout.zero_stage >= shared:
        over.append(f"ZeRO-{layout.zero_stage} over {layout.replicas} ranks")
    each = state.parts[name] / max(1, plan.num_trained if name != "weights" else plan.model.num_parameters)
    text = f"{plan.model.num_parameters:,} parameters, {each:.3g} bytes each on a rank"
    return f"{text} ({', '.join(over)})" if over else text


def _bytes(name: str, size: int, formula: str, source: str) -> Term:
    return Term(name, size, "bytes", formula, source)
