"""What micro-batch would fit, by the memory that the first steps have taken on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from llmkit.config.memory import show_bytes
from llmkit.engine.base import StepResult
from llmkit.loop.hook import Hook
from llmkit.monitor.hardware import GpuMemory, gpu_memory

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
