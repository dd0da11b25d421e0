"""`train.max_minutes`: from the time of a run to its number of steps, and its end in time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llmkit.engine.base import StepResult
from llmkit.errors import UserError
from llmkit.loop import budget as times
from llmkit.loop.budget import Budget, Plan
from llmkit.loop.control import OUT_OF_TIME
from llmkit.loop.ends import save_and_fail
from llmkit.loop.hooks import Log
from llmkit.loop.run import Run


class ChooseSteps:
    """Turns a time budget into `max_steps`, once, and records it.

    The run ends earlier where a source with `max_epochs` does not last so long. budget: None where the number
    of steps is known.
    """

    def __init__(self, budget: Budget | None, log: Log) -> None:
        self.budget, self.log = budget, log
        self.is_open = budget is not None
        self.plan: Plan | None = None
        self.problem: UserError | None = None

    def wish(self, run: Run) -> int:
        """The number of steps that should hold from now on; 0 = none is known, or it holds already."""
        if self.budget is None:
            return 0
        tokens = run.config.train.global_batch_size * run.config.data.sequence_length
        try:
            self.plan = self.budget.after_step(run.progress.step, tokens)
        except UserError as error:
            self.problem = error
        if self.plan is None and self.problem is None:
            return 0
        self.budget = None
        return OUT_OF_TIME if self.plan is None else self.plan.max_steps

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`. Raises UserError on all ranks, with all saved, where no time is left."""
        if not self.is_open:
            return
        planned = run.agreed.max_steps
        if planned == OUT_OF_TIME:
            too_short = UserError("train.max_minutes is too short on this machine")
            save_and_fail(run, self.log, self.problem or too_short)
        short = run.loader.first_shortage
        if planned == 0 and (short is None or run.progress.step < short.last_step):
            return
        self.budget, self.is_open = None, False
        ends_by_supply = short is not None and (planned == 0 or short.last_step < planned)
        chosen = short.last_step if short is not None and ends_by_supply else planned
        # Many ranks learn of a plan a step later.
        run.progress.max_steps = run.console.max_steps = max(chosen, run.progress.step)
        if run.mesh.rank > 0:  # which timed its own steps
            return
        timed: dict[str, Any] = self.plan._asdict() if self.plan is not None and planned else {}
        run.events.record("max_steps", **timed | {"max_steps": chosen})
        minutes = f"{run.config.train.max_minutes:g} minutes"
        if short is not None and ends_by_supply:
            limit = f"data.sources.{short.supply.index}.max_epochs is {short.supply.max_epochs}"
            run.console.note(
                f"max_steps = {chosen}: source {short.supply.name} lasts until then ({limit}); "
                f"{minutes} would be {f'{planned} steps' if planned else 'more'}"
            )
        elif self.plan is not None:
            run.console.note(
                f"max_steps = {chosen}: {minutes} at {self.plan.step_seconds:.2f} s a step, "
                f"{self.plan.reserved_seconds:.0f} s kept for the end"
            )


def time_over(run: Run, started: float) -> Callable[[], bool]:
    """Asked on rank 0, whether the run must begin to end for `train.max_minutes` to hold.

    A machine that slows down after its steps were chosen makes them last longer. Time is left for a save
    like the last one. Never where `train.max_steps` is set, or no number of steps is chosen yet.
    """
    config = run.config.train
    if run.mesh.rank > 0 or config.max_steps is not None or config.max_minutes is None:
        return lambda: False
    end = started + 60.0 * config.max_minutes

    def over() -> bool:
        left = end - time.monotonic() - times.END_SECONDS - run.save_seconds
        return run.progress.max_steps is not None and left <= 0.0

    return over
