"""Agreement between ranks on what depends on time, signals or files: it must happen at one step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from llmkit.errors import RunFault
from llmkit.parallel.mesh import Mesh


class Agreed(NamedTuple):
    """The merged requests of a rank, and, once exchanged, of all ranks: of each the largest; 0 = none.

    stop: why to stop, an index into `llmkit.loop.stop.REASONS`. save: 1 = write a checkpoint. evaluate:
    1 = compute the held-out loss. max_steps: the step after which the run is finished. failed: 1 = a hook
    of this rank has failed. unready: 1 = it is not certain that this rank will have a batch for the next
    step but one. rollback: the step of a spike from before which to go on. repeat: 1 = compute a micro-batch
    again. saves: minus the number of saves that this rank has finished, so that the largest is that of the
    slowest rank.
    """

    stop: int = 0
    save: int = 0
    evaluate: int = 0
    max_steps: int = 0
    failed: int = 0
    unready: int = 0
    rollback: int = 0
    repeat: int = 0
    saves: int = 0


NOTHING = Agreed(unready=1)
"""What is known before anything was exchanged."""
POLL_SECONDS = 0.5
"""About how often ranks ask each other in a long phase whether to give it up."""


class Control:
    """Merges the requests of all ranks, beside training and without waiting for it.

    The requests of a step travel while the next step is computed, and hold after it, on all ranks; those of
    a process alone hold at once.

    Hashes of what was trained on travel along: tensor-parallel peers must have seen the same.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._sent: tuple[Tensor, dist.Work] | None = None

    def exchange(self, own: Agreed, batch_hash: int = 0) -> Agreed:
        """Called after every step by every rank: gives its own requests, returns those that now hold for all.

        batch_hash: of the step's batch, below 2^63. Raises RunFault where tensor-parallel peers differ.
        """
        if self._mesh.world_size == 1:
            return own
        holds = self._receive()
        hashes = torch.zeros((2, self._mesh["data"].size), dtype=torch.int64)
        if self._mesh["context", "tensor"].size > 1:  # the largest is the smallest where all are the same
            hashes -= 2**62 * 2 - 1
            hashes[:, self._mesh["data"].rank] = torch.tensor([batch_hash, -batch_hash])
        values = torch.cat([torch.tensor(own, dtype=torch.int64), hashes.flatten()])
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self._mesh.control, async_op=True)
        self._sent = values, work
        return holds

    def largest(self, *values: int) -> list[int]:
        """The largest of what all ranks give, value by value; waits for them, and all must call it."""
        if self._mesh.world_size == 1:
            return list(values)
        largest = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self._mesh.control)
        return largest.tolist()

    def settle(self) -> None:
        """Waits for the exchange under way, whose result is taken as ever. Not collective."""
        if self._sent is not None:
            self._sent[1].wait()

    def _receive(self) -> Agreed:
        if self._sent is None:
            return NOTHING
        (values, work), self._sent = self._sent, None
        work.wait()
        agreed, hashes = values[: len(NOTHING)], values[len(NOTHING) :].view(2, -1)
        differ = (hashes[0] != -hashes[1]).nonzero()
        if differ.numel() and self._mesh["context", "tensor"].size > 1:
            raise RunFault(
                f"the tensor-parallel processes of data rank {int(differ[0])} were given different batches; "
                "do all nodes see the same files and the same llmkit?"
            )
        return Agreed(*agreed.tolist())

    def close(self) -> Agreed:
        """Ends the last exchange, which all ranks must have begun; returns what they asked for in it."""
        return self._receive()


class Poll:
    """Called between any two parts of a long phase, on all ranks, it lets them give it up at the same part.

    The ranks meet about every POLL_SECONDS; the fastest of them sets how many parts lie between.
    stop_code: why this rank would give up; 0 = it would not.
    """

    def __init__(self, control: Control, stop_code: Callable[[], int]) -> None:
        self._control, self._stop_code = control, stop_code
        self._every = 1  # parts from one meeting to the next
        self._parts = 0  # since the last one
        self._since: float | None = None

    def __call__(self) -> int:
        """Why to give up here; 0 = go on."""
        if self._since is None:  # before the first part
            self._since = time.monotonic()
            (why,) = self._control.largest(self._stop_code())
            return why
        self._parts += 1
        if self._parts < self._every:
            return 0
        seconds = time.monotonic() - self._since
        fitting = int(POLL_SECONDS * self._parts / max(seconds, 1e-9))
        # Growing slowly: the first parts may be faster than those that follow.
        why, self._every = self._control.largest(self._stop_code(), max(1, min(fitting, 2 * self._every)))
        self._parts, self._since = 0, time.monotonic()
        return why
