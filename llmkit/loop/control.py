"""Decisions that depend on time, on signals or on files: all ranks must take them at the same step."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.parallel.mesh import Mesh


class Wishes(NamedTuple):
    """What a rank wants to happen; 0 = nothing.

    stop: why to stop, a place in `llmkit.loop.stop.REASONS`. save: 1 = it is time for a checkpoint.
    max_steps: the number of steps that a time budget has become, or OUT_OF_TIME.
    """

    stop: int = 0
    save: int = 0
    max_steps: int = 0


NOTHING = Wishes()
OUT_OF_TIME = 2**62
"""Instead of a number of steps: no time is left for any."""


class Control:
    """Lets all ranks know what each one wants, beside training and without waiting for it.

    The wishes of a step travel while the next step is computed, and hold after it, on all ranks; a
    process alone has its own at once. Of what depends on time, only rank 0's wishes count.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._sent: tuple[Tensor, dist.Work] | None = None

    def exchange(self, wishes: Wishes) -> Wishes:
        """Called after every step by every rank: gives this rank's wishes, returns what now holds for all."""
        if self._mesh.world_size == 1:
            return wishes
        holds = self._receive()
        if self._mesh.rank > 0:
            wishes = Wishes(stop=wishes.stop)
        values = torch.tensor(wishes, dtype=torch.int64)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self._mesh.control_group, async_op=True)
        self._sent = values, work
        return holds

    def _receive(self) -> Wishes:
        if self._sent is None:
            return NOTHING
        (values, work), self._sent = self._sent, None
        work.wait()
        return Wishes(*values.tolist())

    def close(self) -> None:
        """Ends the last exchange; all ranks must have begun it."""
        self._receive()
