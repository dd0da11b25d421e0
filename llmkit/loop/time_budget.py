"""`train.max_minutes`: from the time of a run to its number of steps, and its end in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmkit.config.schema import Train
from llmkit.engine.base import StepResult
from llmkit.loop import budget as times
from llmkit.loop.budget import Budget, StepPlan
from llmkit.loop.hook import Hook, Request
from llmkit.loop.state import TrainState

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


class TimeBudget(Hook):
    """Turns a time budget into `max_steps`, once, and records it.

    The steps of rank 0 are timed. The run ends earlier where a source with `max_epochs` does not last so
    long. budget: None where the number of steps is known.
    """

    def __init__(self, budget: Budget | None) -> None:
        self._budget, self._is_open = budget, budget is not None
        self._plan: StepPlan | None = None

    def request(self, t: Trainer) -> Request | None:
        """The number of steps, once it is known. Raises UserError where no time is left."""
        budget = self._budget
        if budget is None or t.mesh.rank > 0:
            return None
        self._plan = budget.after_step(t.state.step, t.plan.tokens_per_step, t.clock())
        if self._plan is None:
            return None
        self._budget = None
        return Request(max_steps=self._plan.max_steps)

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """Ends the run with the supply of its data, if that is shorter; records the number of steps."""
        if not self._is_open:
            return
        planned, short = t.agreed.max_steps, t.loader.first_shortage
        if planned == 0 and (short is None or t.state.step < short.last_step):
            return
        self._budget, self._is_open = None, False
        ends_by_supply = short is not None and (planned == 0 or short.last_step < planned)
        chosen = short.last_step if short is not None and ends_by_supply else planned
        t.end_after(chosen)
        if t.mesh.rank > 0:
            return
        timed: dict[str, Any] = self._plan._asdict() if self._plan is not None and planned else {}
        t.events.record("max_steps", **timed | {"max_steps": chosen})
        minutes = f"{t.config.train.max_minutes:g} minutes"
        if short is not None and ends_by_supply:
            limit = f"data.sources.{short.supply.index}.max_epochs is {short.supply.max_epochs}"
            t.console.note(
                f"max_steps = {chosen}: source {short.supply.name} lasts until then ({limit}); "
                f"{minutes} would be {f'{planned} steps' if planned else 'more'}"
            )
        elif self._plan is not None:
            t.console.note(
                f"max_steps = {chosen}: {minutes} at {self._plan.step_seconds:.2f} s a step, "
                f"{self._plan.reserved_seconds:.0f} s kept for the end"
            )


def time_over(
    train: Train, state: TrainState, started: float, clock: Callable[[], float], save_seconds: float
) -> bool:
    """Whether a run must begin to end for `train.max_minutes` to hold; asked on rank 0.

    A machine that slows down after its steps were chosen makes them last longer. Time is left for a save
    like the last one, of `save_seconds`. Never where `train.max_steps` is set, or no number of steps is
    chosen yet.
    """
    if train.max_steps is not None or train.max_minutes is None or state.max_steps is None:
        return False
    end = started + 60.0 * train.max_minutes
    return end - clock() - times.END_SECONDS - save_seconds <= 0.0
