"""`train.max_minutes`: from the time of a run to its number of steps, and its end in time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llmkit.config.schema import Train
from llmkit.data.curriculum import Shortage
from llmkit.engine.base import StepResult
from llmkit.loop import budget as times
from llmkit.loop.budget import Budget, BudgetWatch, StepPlan
from llmkit.loop.hook import Hook, Request
from llmkit.loop.state import TrainState

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


WORTH_A_LINE = 0.05
"""Share of its steps by which a run must become shorter or longer for the console to say so."""


class TimeBudget(Hook):
    """Turns a time budget into `max_steps`; anew where the machine has become much slower or faster since.
    Records every change of the number, those by other hooks, too.

    The steps of rank 0 are timed. The run ends earlier where a source with `max_epochs` does not last so
    long. budget: None where the number of steps is known.
    """

    def __init__(self, budget: Budget | None) -> None:
        self._budget, self._is_open = budget, budget is not None
        self._plan: StepPlan | None = None
        """What was asked for, until it holds."""
        self._watch: BudgetWatch | None = None
        """Since the number of steps is chosen, while no other hook has set it; on rank 0."""
        self._asked: int | None = None
        """The number of steps that was asked for last."""
        self._known: int | None = None
        """The number of steps that is on record."""
        self._shown: int | None = None
        """The number of steps that was shown last."""
        self._paused = 0.0

    def on_start(self, t: Trainer) -> None:
        """The number of steps from before is known."""
        self._known = t.state.max_steps

    def request(self, t: Trainer) -> Request | None:
        """The number of steps, once it is known, and again where it changes. Raises UserError where no time
        is left."""
        if t.mesh.rank > 0 or (self._budget is None and self._watch is None):
            return None
        state, now, short = t.state, t.clock(), t.loader.first_shortage
        most = None if short is None else short.last_step
        if self._plan is None and state.max_steps != self._asked:
            self._watch = None  # the end of another hook stays where it is
        if self._budget is not None:
            plan = self._budget.after_step(state.step, t.plan.tokens_per_step, now)
            if plan is not None:
                self._watch, self._budget, self._paused = self._budget.watch, None, _paused(t)
        elif self._watch is not None and state.max_steps is not None:
            before, self._paused = self._paused, _paused(t)
            kept = t.saves.seconds + t.tasks_seconds  # for those at the end
            spent = self._paused - before
            plan = self._watch.after_step(state.step, state.max_steps, now, spent, kept, most)
        else:
            plan = None
        if plan is None:
            return None
        self._plan, self._asked = plan, plan.max_steps if most is None else min(plan.max_steps, most)
        return Request(max_steps=self._asked)

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """Ends the run with the supply of its data, where no number of steps was chosen until then; records
        the number."""
        chosen, first, short = t.state.max_steps is not None, self._is_open, None
        if first:
            short = t.loader.first_shortage
            if not chosen and (short is None or t.state.step < short.last_step):
                return
            self._budget, self._is_open = None, False
            if not chosen and short is not None:
                t.end_after(short.last_step)
        if t.mesh.rank == 0 and (first or t.state.max_steps != self._known):
            self._record(t, first, short)

    def _record(self, t: Trainer, first: bool, short: Shortage | None) -> None:
        """Puts on record where the run ends now, and why."""
        chosen, plan = t.state.max_steps, None
        if chosen == self._asked:
            plan, self._plan = self._plan, None
        self._known = chosen
        timed: dict[str, Any] = {} if plan is None else plan._asdict()
        t.events.record("max_steps", **timed | {"max_steps": chosen})
        minutes = f"{t.config.train.max_minutes or 0.0:g} minutes"
        if short is not None and chosen == short.last_step:
            limit = f"{short.source.setting}.max_epochs is {short.source.max_epochs}"
            why = (
                f"source {short.source.name} lasts until then ({limit}); "
                f"{minutes} would be {f'{plan.max_steps} steps' if plan is not None else 'more'}"
            )
        elif plan is not None:
            now = "" if first else " by now"
            if not first and t.config.schedule.steps is None:
                now += ", and the learning rate still ends as planned"
            why = (
                f"{minutes} at {plan.step_seconds:.2f} s a step{now}, "
                f"{plan.reserved_seconds:.0f} s kept for the end"
            )
        else:
            why = "a hook asks for it"
        line, before = f"max_steps = {chosen}: {why}", self._shown
        if plan is not None and before and abs(plan.max_steps - before) < WORTH_A_LINE * before:
            t.console.log(line)  # a machine that others use changes its pace all the time
        else:
            self._shown = chosen
            t.console.note(line)


def _paused(t: Trainer) -> float:
    """Seconds of evaluations and saves so far."""
    return t.phases.seconds["evaluate"] + t.phases.seconds["save"]


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
