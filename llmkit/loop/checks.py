"""What is looked for in the numbers of a run while it trains, and what follows: see docs/faults.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from llmkit.batch import Batch
from llmkit.loop.ranks import hosts_of, named_ranks
from llmkit.loop.repeat import repeat
from llmkit.loop.replicas import Sums, compare_copies, sum_copies
from llmkit.monitor.spikes import Spike
from llmkit.parallel.randomness import seed_step

if TYPE_CHECKING:
    from llmkit.loop.routing_log import Failure
    from llmkit.loop.trainer import Trainer

OUTLIER = 1000.0
"""A rank's own gradient whose norm is so many times the median of all is a fault of that rank, not of its
data. Checked from three ranks on."""
BETWEEN = 20
"""Steps between two repetitions because of a suspicion."""
SHOWN = 8


class Checks:
    """The checks of a run; the same on all ranks, which all call its methods together."""

    def __init__(self, t: Trainer) -> None:
        self._t = t
        self.suspicion = ""
        """Why a micro-batch should be computed again; "" = there is no reason."""
        self.bad_ranks: list[int] = []
        """Whose gradients were not finite in the newest skipped step, where it was not all of them."""
        self._repeated = -BETWEEN
        self._sums: Sums | None = None

    def spiked(self, spike: Spike) -> None:
        """A step's loss or gradient norm is far above those before."""
        t = self._t
        t.events.record("loss_spike", **spike._asdict())
        t.console.note(spike.text)
        self._suspect("spike")
        if t.config.faults.on_spike == "rollback":
            t.rollbacks.asked = t.rollbacks.asked or spike.step

    def gradients(self, step: int, squares: Sequence[float]) -> None:
        """squares: of the norm of the gradient that each rank has computed in a step."""
        bad = [rank for rank, square in enumerate(squares) if not math.isfinite(square)]
        if bad:
            self.bad_ranks = bad if len(bad) < len(squares) else []
            self._record("nonfinite_gradient", step, bad, f"not finite {self._whose(bad, len(squares))}")
        elif len(squares) > 2:
            usual = median(squares)
            large = [rank for rank, square in enumerate(squares) if square > OUTLIER**2 * usual > 0.0]
            if large:
                whose = self._whose(large, len(squares))
                self._record("gradient_outlier", step, large, f"over {OUTLIER:g} times the usual {whose}")

    def routing(self, step: int, failure: Failure) -> None:
        """Experts get no tokens, or a router sends all to a few."""
        self._t.events.record(failure.event, step=step, where=failure.where)
        self._t.console.note(f"step {step}: {failure.text}")

    def blame(self) -> tuple[str, list[str]]:
        """Whose gradient was not finite in the newest skipped step, as in "on rank 3 (n2)", and their hosts;
        "" where it was that of all ranks."""
        if not self.bad_ranks:
            return "", []
        return self._whose(self.bad_ranks, len(self._t.hosts)), hosts_of(self.bad_ranks, self._t.hosts)

    def _record(self, event: str, step: int, ranks: list[int], what: str) -> None:
        hosts = hosts_of(ranks, self._t.hosts)
        self._t.events.record(event, step=step, ranks=ranks[:SHOWN], hosts=hosts[:SHOWN])
        self._t.console.note(f"step {step}: the gradient was {what}")
        self._suspect(event)

    def _whose(self, ranks: list[int], of: int) -> str:
        if len(ranks) == of:
            return "on all ranks"
        return f"on {named_ranks(ranks, self._t.hosts, SHOWN)}"

    def _suspect(self, reason: str) -> None:
        if self._t.state.step >= self._repeated + BETWEEN:
            self.suspicion = reason

    def before_step(self, batch: Batch) -> None:
        """Computes the first micro-batch of a step again where that is due, or something is suspicious."""
        t, every = self._t, self._t.config.faults.repeat_every
        due = every > 0 and (t.state.step + 1) % every == 0
        if not t.log.warmed_up or not (due or t.agreed.repeat):  # not before code is compiled
            return
        reason, self.suspicion = self.suspicion or "faults.repeat_every", ""
        self._repeated, rank = t.state.step, t.mesh["data", "context"].rank
        repeat(t, batch, reason, lambda: seed_step(t.config.run.seed, t.state.step, rank))

    def after_step(self) -> None:
        """Compares what ranks hold copies of, as it was after the step before the newest."""
        t, every = self._t, self._t.config.faults.check_replicas_every
        self._compare()
        if t.mesh.world_size > 1 and every > 0 and t.state.step % every == 0:
            self._sums = sum_copies(t.engine, t.mesh, t.state.step)

    def before_save(self) -> None:
        """The same for what is about to be saved."""
        t = self._t
        if t.mesh.world_size == 1 or not t.config.faults.check_replicas_every:
            return
        if self._sums is None or self._sums.step != t.state.step:
            self._sums = sum_copies(t.engine, t.mesh, t.state.step)
        self._compare()

    def _compare(self) -> None:
        sums, self._sums = self._sums, None
        if sums is not None:
            compare_copies(self._t, sums)
