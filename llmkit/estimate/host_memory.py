"""Memory of a host for each of its processes, by part.

The page cache is left out: the kernel gives it back, also that of a checkpoint being written, of which it
holds no more than vm.dirty_ratio of the memory (20 % where nobody has set it) before the writer has to wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmkit.config.memory import checkpoint_bytes, show_bytes
from llmkit.config.shape import ModelShape
from llmkit.estimate.term import Term
from llmkit.plan.activations import block_bytes, offloaded_bytes
from llmkit.plan.communication_memory import offload_buffers
from llmkit.plan.memory import Memory, arithmetic
from llmkit.plan.plan import Plan
from llmkit.precision import BYTES

GIB = 2**30
PROCESS = int(3.0 * GIB)
"""For a process on a GPU: Python, PyTorch and CUDA's libraries. Assumed."""
CPU_PROCESS = int(0.3 * GIB)
"""For a process on a CPU: 0.25 GiB were measured after importing PyTorch 2.13 and llmkit."""
WORKER = int(0.3 * GIB)
"""For a process that prepares data. Assumed."""
MOST_WORKERS = 4
"""Of a process where `data.workers` is auto: see `llmkit.device.choose_workers`."""
CHUNK = GIB
"""In which memory for a copy of the state is taken: see `llmkit.checkpoint.stage`."""
CHECKPOINT_COPY = "copy of a checkpoint"
SUB_GROUP = 10**9
"""Elements that DeepSpeed updates at once at stage 3 (`sub_group_size`): each of them has its gradients."""
PAGE_LOCKED = "PyTorch rounds page-locked memory up to powers of 2 (ATen/core/CachingHostAllocator.h)"


def host_terms(plan: Plan, needs: Memory, on_cpu: bool) -> Iterator[Term]:
    """The parts of a process beside the tensors of a step on the device; on a CPU these take the host's
    memory, too. State that is offloaded is not among them."""
    if not on_cpu and plan.layout.offload == "cpu":
        yield from _offloading(plan, needs)
    if not on_cpu and isinstance(plan.model, ModelShape):
        how = arithmetic(plan.config, plan.precision, plan.layout, plan.kernels)
        tokens = plan.layout.tokens_of(plan.micro_batch_size, plan.config.data.row_length)
        if size := int(offloaded_bytes(plan.model, how) * tokens):
            each = int(block_bytes(plan.model, how, "full") * tokens)
            blocks = round(size / each)
            text = f"{blocks} inputs of recomputed blocks of {tokens:,} tokens, page-locked"
            yield _bytes("activations", page_locked([each] * blocks), text, "parallel.offload_activations")
    size, what = (CPU_PROCESS, "measured") if on_cpu else (PROCESS, "assumed")
    yield _bytes("process", size, "Python, PyTorch" + ", CUDA's libraries" * (not on_cpu), what)
    if plan.config.checkpoint.background:
        yield _copy(plan, on_cpu)
    if any(source.live for source in plan.config.data.sources) and (workers := _workers(plan)):
        yield _bytes("data workers", workers * WORKER, f"{workers} workers x {show_bytes(WORKER)}", "assumed")


def page_locked(sizes: Sequence[int]) -> int:
    """Bytes that page-locked tensors of these bytes take: each a power of 2."""
    return sum(1 << (size - 1).bit_length() for size in sizes if size > 0)


def _offloading(plan: Plan, needs: Memory) -> Iterator[Term]:
    """Buffers of DeepSpeed beside the state that it offloads, and what page-locking adds to both."""
    precision, layout, state = plan.precision, plan.layout, needs.state
    buffers = offload_buffers(plan.model, plan.config.train.lora, precision, layout, state)
    for name, size in buffers.items():
        yield _bytes(name, size, show_bytes(size), "llmkit/plan/communication_memory.py; read in DeepSpeed")
    if layout.zero_stage == 3:  # masters and moments are not locked
        group = BYTES[precision.reduction] * SUB_GROUP
        parts = [*[group] * (state.gradients // group), state.gradients % group, state.weights]
    else:
        parts = [state.gradients, state.masters]
    locked = [*parts, *buffers.values()]
    text = f"{show_bytes(page_locked(locked))} for {show_bytes(sum(locked))} in {len(locked)} tensors"
    yield _bytes("rounding of page-locked memory", page_locked(locked) - sum(locked), text, PAGE_LOCKED)


def _copy(plan: Plan, on_cpu: bool) -> Term:
    """This rank's share of a checkpoint, kept from one save to the next."""
    whole, ranks = int(checkpoint_bytes(plan.kept_tensors) * plan.num_trained), plan.layout.world_size
    mine = -(-whole // ranks)
    size = mine if on_cpu else page_locked([CHUNK] * (mine // CHUNK) + [mine % CHUNK])
    rounded = "" if on_cpu else f" in page-locked chunks of {show_bytes(CHUNK)}"
    text = f"{show_bytes(whole)} / {ranks:,} ranks{rounded}, kept from one save to the next"
    return _bytes(CHECKPOINT_COPY, size, text, "checkpoint.background")


def _workers(plan: Plan) -> int:
    asked = plan.config.data.workers
    return MOST_WORKERS if asked == "auto" else asked


def _bytes(name: str, size: int, formula: str, source: str) -> Term:
    return Term(name, size, "bytes", formula, source)
