"""Turns `train.max_minutes` into a number of steps."""

from __future__ import annotations

from typing import NamedTuple

from llmkit.config.schema import Config
from llmkit.data.evaluation import HeldOut
from llmkit.errors import UserError

TIMED_STEPS = 8
"""Steps that are timed at least, after the first two: those compile and warm caches."""
TIMED_SHARE = 0.05
"""Share of the time left after which the timing ends in any case."""
END_SECONDS = 8.0
"""Kept for the last save, the sample and the end of the processes around the run."""
MARGIN = 0.96
"""Share of the time left that is planned: machines slow down more often than they speed up."""


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
        self._seen = 0
        self._times: list[float] = []
        self._last = now

    @classmethod
    def for_run(cls, config: Config, started: float, now: float, heldout: HeldOut | None) -> Budget:
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
        left = f"after {self._seen} steps no time is left; raise it, or set train.max_steps"
        if not self._times:
            raise UserError(f"train.max_minutes is too short on this machine: {left}")
        times = sorted(self._times)
        seconds = times[len(times) // 2]
        evaluation = self.heldout_tokens / tokens_per_step * seconds / 3.0
        reserve = END_SECONDS + evaluation
        each = seconds + (evaluation / self.evaluate_every if self.evaluate_every else 0.0)
        more = int((self.deadline - reserve - now) * MARGIN / each)
        if more <= 0:
            raise UserError(
                f"train.max_minutes is too short on this machine: a step takes {seconds:.2f} s, and {left}"
            )
        return StepPlan(step + more, seconds, reserve)
