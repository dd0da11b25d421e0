"""The memory of a GPU in a run: what micro-batch would fit, and what to do where one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llmkit.config.memory import show_bytes
from llmkit.engine.base import StepResult
from llmkit.errors import RunFault, UserError
from llmkit.loop.hook import Hook
from llmkit.monitor.hardware import GpuMemory, gpu_memory
from llmkit.plan import Plan

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

STEPS = 2
"""Steps of this process after which memory is looked at: in the first one code is compiled and chosen."""
SAFE_SHARE = 0.9
"""Share of the memory beside weights and state that may be filled: some is lost between blocks."""


class MicroBatchHint(Hook):
    """Says once whether a larger micro-batch would fit; changes nothing."""

    def __init__(self, memory: Callable[[torch.device], GpuMemory] = gpu_memory) -> None:
        self._memory, self._steps = memory, 0

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """Looks at the memory after step STEPS of this process, on rank 0."""
        self._steps += 1
        if self._steps != STEPS or t.mesh.rank > 0 or t.mesh.device.type != "cuda":
            return
        found = self._memory(t.mesh.device)
        now, rows = t.plan.micro_batch_size, t.plan.rows_per_rank
        fits = largest_micro_batch(rows, now, found)
        if fits > now:
            t.console.note(
                f"at most {show_bytes(found.peak)} of {show_bytes(found.usable)} of GPU memory were in use: "
                f"train.micro_batch_size={fits} should fit (now {now}), with {rows // fits} micro-batches a "
                f"step instead of {rows // now}"
            )


def largest_micro_batch(rows: int, now: int, found: GpuMemory) -> int:
    """The largest divisor of `rows` that should fit, `now` at least: activations grow with the micro-batch.

    rows: of a step and rank. now: the micro-batch that `found` was measured with.
    """
    each = max(1.0, (found.peak - found.held) / now)
    fit = SAFE_SHARE * (found.usable - found.held) / each
    return max(n for n in range(1, rows + 1) if rows % n == 0 and (n <= now or n <= fit))


@contextmanager
def named_where_full(plan: Plan, warmed_up: bool) -> Iterator[None]:
    """Says what to do where a step does not fit into a GPU's memory.

    warmed_up: whether a step of this process has fitted before. Raises UserError where none has, since the
    next start would fail alike, else RunFault: memory may be lost in gaps, which a new process does not have.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        now, rows = plan.micro_batch_size, plan.rows_per_rank
        smaller = max((n for n in range(1, now) if rows % n == 0), default=None)
        advice = [] if smaller is None else [f"train.micro_batch_size={smaller}"]
        if plan.layout.activation_checkpointing == "none":
            advice.append("parallel.activation_checkpointing=selective")
        if plan.layout.activation_checkpointing != "full":
            advice.append("parallel.activation_checkpointing=full")
        advice.append("more sharing (parallel.zero_stage, parallel.tensor_parallel_size)")
        kind = RunFault if warmed_up else UserError
        raise kind(
            f"a step with train.micro_batch_size {now} does not fit into the GPU's memory "
            f"({str(error).splitlines()[0]}); try {', or '.join(advice)}"
        ) from error
