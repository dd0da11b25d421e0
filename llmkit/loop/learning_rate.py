"""The learning rate of a run that goes on with other settings, beside the one that it would have had."""

from __future__ import annotations

from dataclasses import dataclass

from llmkit.checkpoint.read import Checkpoint
from llmkit.config.schema import Config
from llmkit.loop.resume import settings_of
from llmkit.loop.state import TrainState
from llmkit.optim.schedule import learning_rate_at

COMPARED = 1000
"""Steps, evenly spread over the rest of the run, at which the two are compared."""


@dataclass(frozen=True)
class RateChange:
    """The learning rate of the next step by the checkpoint's settings and by those of now."""

    old: float
    new: float
    message: str


def rate_change(checkpoint: Checkpoint, config: Config, state: TrainState) -> RateChange | None:
    """How the learning rate of the steps to come changes; None where it does not.

    state: of now, with the number of steps of now.
    """
    if state.finished():
        return None
    before = settings_of(checkpoint)
    was = TrainState.from_json(checkpoint.state["progress"], checkpoint.origin)
    steps_before = was.max_steps
    step, end = state.step + 1, max(state.max_steps or 0, steps_before or 0, state.step + 1)
    stride = max(1, (end - step) // COMPARED)
    pairs = [
        (
            learning_rate_at(s, steps_before, before, was.pace),
            learning_rate_at(s, state.max_steps, config, state.pace),
        )
        for s in [*range(step, end, stride), end]
    ]
    if all(old == new for old, new in pairs):
        return None
    old, new = pairs[0]
    message = f"the learning rate of step {step} is {new:.3g}; by the checkpoint's settings it was {old:.3g}"
    if old == new:
        message = f"the learning rate of step {step} is {new:.3g} as before, that of later steps changes"
    spans = before.schedule.steps is None and config.schedule.steps is None
    if spans and steps_before is not None and state.max_steps != steps_before:
        message += (
            f": the schedule now spans {state.max_steps} steps instead of {steps_before} "
            f"(schedule.steps={steps_before} would keep it)"
        )
    return RateChange(old, new, message)
