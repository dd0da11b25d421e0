"""Memory that a plan needs of each device and of the host, by part, for the fullest rank.

All ranks of a layout keep as many bytes (`llmkit.plan.state_memory`), so that any of them is the fullest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.config.derive import divisors
from llmkit.config.memory import checkpoint_bytes, show_bytes
from llmkit.config.shape import ModelShape
from llmkit.estimate.hardware import Fleet
from llmkit.estimate.term import Term
from llmkit.plan.activations import training_parts
from llmkit.plan.memory import Memory, arithmetic, memory
from llmkit.plan.plan import Plan

GIB = 2**30
FRAGMENTATION = 0.08
"""Of what comes and goes in a step, the share that is lost between tensors: 5 to 10 % fewer rows fit than the
sum of their tensors says, with segments that grow. Assumed."""
CONTEXT = int(0.75 * GIB)
"""Of a GPU: CUDA's context with loaded kernels, and cuBLAS's workspaces. Assumed; 0.5 to 1 GiB is usual."""
COMMUNICATOR = int(0.375 * GIB)
"""Of NCCL for each group of ranks that a process sends to: its channels' buffers. Assumed."""
PROCESS = int(3.0 * GIB)
"""Of the host for a process on a GPU: Python, PyTorch and CUDA's libraries. Assumed."""
WORKER = int(0.3 * GIB)
"""Of the host for a process that prepares data. Assumed."""
CHECKPOINT_COPY = "copy of a checkpoint"
"""Name of a part of the host's memory."""
STATE_SOURCE = "llmkit/plan/state_memory.py; compared with what engines allocate in every case of parity"
KEPT_SOURCE = "llmkit/plan/activations.py; tests count the tensors that autograd saves"


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory of the fullest rank, a term in bytes for each part.

    device: on the device that computes, at the largest moment of a step. host: of one process beside it, and
    on a CPU nothing. available: bytes of the device, or of the host for a process on a CPU. least: of the
    device, what a step takes at least. known: whether activations are among the parts; of registered models
    nothing is known of them. largest_micro_batch: that fits; 0 where none does, or nothing is known.
    """

    device: tuple[Term, ...]
    host: tuple[Term, ...]
    available: int
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
        """Whether a step fits into the device by estimate."""
        return self.device_bytes <= self.available

    @property
    def cannot_fit(self) -> bool:
        """Whether it cannot, whatever is wrong with the estimate: training refuses it then."""
        return self.least > self.available


def memory_of(plan: Plan, fleet: Fleet) -> MemoryEstimate:
    """The memory of a plan, whose layout is for as many processes as the fleet has devices."""
    available = int(fleet.device.memory)
    now = memory(plan)
    on_cpu = fleet.device.architecture == "cpu"
    device, known = tuple(_device(plan, now, on_cpu)), now.activations is not None
    beside = int(sum(term.value for term in device)) - with_losses(now, now.activation_bytes)
    largest = _largest_micro_batch(plan, now, available - beside)
    return MemoryEstimate(device, tuple(_host(plan, now, on_cpu)), available, now.least, known, largest)


def with_losses(needs: Memory, activations: int) -> int:
    """Bytes of activations with what is lost between tensors that come and go."""
    return activations + int(FRAGMENTATION * (activations + sum(needs.buffers.values())))


def _largest_micro_batch(plan: Plan, needs: Memory, room: int) -> int:
    """The largest divisor of a rank's rows whose activations fit; 0 where nothing is known of them."""
    if not isinstance(plan.model, ModelShape):
        return 0
    parts = training_parts(plan.model, arithmetic(plan.config, plan.precision, plan.layout, plan.kernels))
    rows, length = plan.rows_per_rank, plan.config.data.row_length

    def fits(micro: int) -> bool:
        tokens = plan.layout.tokens_of(micro, length)
        return with_losses(needs, sum(each.of(tokens) for each in parts.values())) <= room

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
    for kind, size in needs.buffers.items():
        yield _bytes(kind, size, show_bytes(size), "llmkit/plan/communication_memory.py; read in DeepSpeed")
    lost = with_losses(needs, needs.activation_bytes) - needs.activation_bytes
    yield _bytes("fragmentation", lost, f"{FRAGMENTATION:.0%} of what comes and goes in a step", "assumed")
    if on_cpu:
        return
    yield _bytes("CUDA", CONTEXT, "context, kernels, workspaces of a process", "assumed")
    groups = (layout.data_parallel_size > 1) + (layout.tensor_parallel_size > 1)
    if groups:
        text = f"{groups} groups of ranks x {show_bytes(COMMUNICATOR)}"
        yield _bytes("NCCL", groups * COMMUNICATOR, text, "assumed")


def _host(plan: Plan, needs: Memory, on_cpu: bool) -> Iterator[Term]:
    """The parts in the host's memory, beside the device's."""
    if on_cpu:
        return
    state = needs.state
    for name in (each for each in state.parts if each in state.on_host and state.parts[each]):
        yield _bytes(name, state.parts[name], _state_formula(plan, name), f"offloaded; {STATE_SOURCE}")
    yield _bytes("process", PROCESS, "Python, PyTorch, CUDA's libraries", "assumed")
    if plan.config.checkpoint.background:
        whole = int(checkpoint_bytes(plan.kept_tensors) * plan.num_trained)
        text = f"{show_bytes(whole)} / {plan.layout.world_size:,} ranks, kept from one save to the next"
        yield _bytes(CHECKPOINT_COPY, whole // plan.layout.world_size, text, "checkpoint.background")
    workers = plan.config.data.workers
    if isinstance(workers, int) and workers:
        text = f"{workers} workers x {show_bytes(WORKER)}"
        yield _bytes("data workers", workers * WORKER, text, "assumed")


def _state_formula(plan: Plan, name: str) -> str:
    layout, state = plan.layout, plan.state
    over = [f"tensor parallel {layout.tensor_parallel_size}"] * (layout.tensor_parallel_size > 1)
    shared = {"weights": 3, "gradients": 2}.get(name, 1)
    if layout.zero_stage >= shared:
        over.append(f"ZeRO-{layout.zero_stage} over {layout.data_parallel_size} ranks")
    each = state.parts[name] / max(1, plan.num_trained if name != "weights" else plan.model.num_parameters)
    text = f"{plan.model.num_parameters:,} parameters, {each:.3g} bytes each on a rank"
    return f"{text} ({', '.join(over)})" if over else text


def _bytes(name: str, size: int, formula: str, source: str) -> Term:
    return Term(name, size, "bytes", formula, source)
