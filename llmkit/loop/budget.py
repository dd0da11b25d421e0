"""Turns `train.max_minutes` into a number of steps."""

from __future__ import annotations

from typing import NamedTuple

from llmkit.config.schema import Config
from llmkit.data.eval_loader import EvalLoader
from llmkit.errors import UserError

TIMED_STEPS = 8
"""Steps that are timed at least, after the first two: those compile and warm caches."""
TIMED_SHARE = 0.05
"""Share of the time left after which the timing ends in any case."""
END_SECONDS = 8.0
"""Kept for the last save, the sample and the end of the processes around the run."""
MARGIN = 0.96
"""Share of the time left that is planned: machines slow down more often than they speed up."""
CHECKS = 40
"""How often in a run it is looked at whether the steps that are left still fit."""
TOO_MANY = 1.01
"""Steps that are left over those that fit: above this their number is chosen anew."""
SPARE = 0.1
"""Share of all steps: where more than those would fit besides, too."""
LEAST_KEPT = 0.5
"""Steps over those that were chosen first, for the same part of the schedule, at least: a run that has lost
more time is rather stopped and goes on later, as a schedule that is hurried through makes a worse model."""


class StepPlan(NamedTuple):
    """A chosen number of steps, and how it came about."""

    max_steps: int
    step_seconds: float
    reserved_seconds: float


class Budget:
    """Counts steps until it can tell how many fit.

    The steps of the warm-up are timed, as the learning rate does not depend on the end before theirs.

    deadline: when the command should have ended, on the clock that `now` is read from. now: the start.
    heldout_tokens: of one evaluation; forward only, each costs a third of a trained token.
    evaluate_every: steps between evaluations; 0 = only at the end.
    warmup_steps: of the schedule.
    """

    def __init__(
        self, deadline: float, heldout_tokens: int, evaluate_every: int, warmup_steps: int, now: float
    ) -> None:
        self.deadline, self.heldout_tokens, self.evaluate_every = deadline, heldout_tokens, evaluate_every
        self.warmup_steps = warmup_steps
        self.watch: BudgetWatch | None = None
        """Of the plan, once there is one."""
        self._seen = 0
        self._times: list[float] = []
        self._last = now

    @classmethod
    def for_run(cls, config: Config, started: float, now: float, heldout: EvalLoader | None) -> Budget:
        """The budget of `train.max_minutes` from `started` on: evaluations, a last save, a sample."""
        assert config.train.max_minutes is not None
        tokens = 0 if heldout is None else heldout.targets
        deadline = started + 60.0 * config.train.max_minutes
        return cls(deadline, tokens, config.evaluate.every_steps, config.schedule.warmup_steps, now)

    def after_step(self, step: int, tokens_per_step: int, now: float) -> StepPlan | None:
        """Called after every step; returns the plan once enough steps have been timed.

        The median step counts, so that one slow step does not shorten the run. Raises UserError
        where the time is already over.
        """
        self._seen += 1
        if self._seen > 2:
            self._times.append(now - self._last)
        self._last = now
        enough = step >= self.warmup_steps or sum(self._times) > TIMED_SHARE * (self.deadline - now)
        if now < self.deadline and (len(self._times) < TIMED_STEPS or not enough):
            return None
        steps = f"{self._seen} step{'s' * (self._seen > 1)}"
        left = f"after {steps} no time is left; raise it, or set train.max_steps"
        if not self._times:
            raise UserError(f"train.max_minutes is too short on this machine: {left}")
        times = sorted(self._times)
        seconds = times[len(times) // 2]
        evaluation = self.heldout_tokens / tokens_per_step * seconds / 3.0
        reserve = END_SECONDS + evaluation
        pause = evaluation / self.evaluate_every if self.evaluate_every else 0.0
        more = int((self.deadline - reserve - now) * MARGIN / (seconds + pause))
        if more <= 0:
            raise UserError(
                f"train.max_minutes is too short on this machine: a step takes {seconds:.2f} s, and {left}"
            )
        self.watch = BudgetWatch(self.deadline, reserve, step, step + more, now, pause)
        return StepPlan(step + more, seconds, reserve)


class BudgetWatch:
    """Looks now and then whether the steps that are left still fit into the time, and chooses their number
    anew where they do not: laptops get slower as they get warm, and other programs come and go.

    deadline: as in `Budget`. reserved: seconds kept for the end. step, max_steps, now: when and as chosen.
    pause: seconds a step that evaluations are expected to take, at least.
    """

    def __init__(
        self, deadline: float, reserved: float, step: int, max_steps: int, now: float, pause: float = 0.0
    ) -> None:
        self._pause = pause
        self._deadline, self._reserved, self._start = deadline, reserved, step
        self._every = max(TIMED_STEPS, (max_steps - step) // CHECKS)
        self._times = [(step, now)]  # of the last checks, without pauses
        self._paused = 0.0  # since the start
        self._kept = 1.0  # steps over those of the first plan, for what is left of the schedule

    def after_step(
        self, step: int, max_steps: int, now: float, paused: float = 0.0, save_seconds: float = 0.0,
        most: int | None = None,
    ) -> StepPlan | None:  # fmt: skip
        """Called after every step; the new plan where one is needed.

        paused: seconds of the evaluations and saves since the last call, which are spread over all steps.
        save_seconds: of the last save. most: the largest number of steps that the data last for, if any.
        """
        self._paused += paused
        if step < self._times[-1][0] + self._every:
            return None
        self._times = [*self._times[-2:], (step, now - self._paused)]
        first, then = self._times[0]
        pause = max(self._pause, self._paused / (step - self._start))
        seconds = (now - self._paused - then) / (step - first) + pause
        reserved = self._reserved + save_seconds
        fitting, left = (self._deadline - reserved - now) / seconds, max_steps - step
        if left <= 0 or fitting - SPARE * max_steps <= left <= fitting / TOO_MANY:
            return None
        more = int(fitting * MARGIN)
        if most is not None:
            more = min(more, most - step)
        if more == left or self._kept * more / left < LEAST_KEPT:
            return None
        self._kept *= more / left
        return StepPlan(step + more, seconds, reserved)
