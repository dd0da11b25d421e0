"""Memory in a run: what micro-batch would fit, and what to do where one does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from llmkit.config.memory import show_bytes
from llmkit.engine.base import StepResult
from llmkit.errors import RunFault, UserError
from llmkit.loop.hook import Hook
from llmkit.monitor.hardware import GpuMemory, gpu_memory, peak_memory_gib, total_memory
from llmkit.plan import Plan
from llmkit.plan.fitting import SAFE_SHARE, should_fit
from llmkit.plan.memory import memory as memory_of_plan

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

STEPS = 2
"""Steps of this process after which memory is looked at: in the first one code is compiled and chosen."""


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
def named_where_full(
    plan: Plan, device: torch.device, warmed_up: bool, where: str = "",
    memory: Callable[[torch.device], GpuMemory] = gpu_memory,
) -> Iterator[None]:  # fmt: skip
    """Says what took the memory, and what should fit, where a step does not fit.

    device: that computes. warmed_up: whether a step of this process has fitted before. where: names the rank.
    Raises UserError where none has, since the next start would fail alike, else RunFault: memory may be lost
    in gaps, which a new process does not have.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _is_full(error):
            raise
        if device.type == "cuda":
            found = memory(device)
            room, peak = found.usable, float(found.peak)
        else:
            room, peak = total_memory(), peak_memory_gib(device) * 2**30
        held = f"at most {show_bytes(peak)} of {show_bytes(room)} were in use"
        kind = RunFault if warmed_up else UserError
        advice = _advice(plan, room, device.type == "cuda")
        reason = str(error).splitlines()[0] if str(error) else "no memory"
        raise kind(f"{where}out of memory: {reason.rstrip('.')}; {held}. {advice}") from error


def _is_full(error: RuntimeError) -> bool:
    """Whether PyTorch had no memory; on a CPU it says so by a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _advice(plan: Plan, room: int, on_gpu: bool) -> str:
    estimate = memory_of_plan(plan)
    return (
        f"A step with train.micro_batch_size {plan.micro_batch_size} needs {show_bytes(estimate.on_device)} "
        f"a process by estimate: {estimate}{'' if estimate.activations else ', and activations'}. "
        f"{should_fit(plan, room, on_gpu)}"
    )
