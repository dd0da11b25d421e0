"""What changes from step to step, as a pure function of the step: nothing to save, nothing to step twice."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmkit.config.optimizer_section import Optimizer, Schedule
from llmkit.config.schema import Config
from llmkit.errors import UserError
from llmkit.registry import Component, find

UNKNOWN_END = 10**9
"""Stands for the number of steps until a time budget has become one: no decay begins before that."""


class StepValues(NamedTuple):
    """Factors of the optimizers' settings in one step; 1.0 = as configured.

    Each parameter group's learning rate, weight decay and momentum (Muon's) is multiplied by its factor.
    ema: share of the new weights in their moving average; 0.0 = the average stays as it is.
    """

    learning_rate: float = 1.0
    weight_decay: float = 1.0
    momentum: float = 1.0
    ema: float = 0.0


AS_CONFIGURED = StepValues()


class Pace(NamedTuple):
    """How a run goes through its schedule once its number of steps was changed on the way.

    After `step`, when it stood at `position` of a schedule of `span` steps, it goes through the rest of it
    evenly, so that its last step is still the schedule's last.
    """

    step: int
    position: float
    span: int

    def position_at(self, step: int, max_steps: int) -> float:
        """Where in the schedule the update is that makes `step`; max_steps: of the run now."""
        share = (step - self.step) / max(1, max_steps - self.step)
        return self.position + share * (self.span - self.position)


def step_values(step: int, max_steps: int | None, config: Config, pace: Pace | None = None) -> StepValues:
    """Factors of the update that makes step `step`; max_steps: of the run, None if not known yet."""
    position: float = step
    if pace is not None and max_steps is not None and config.schedule.steps is None:
        position, max_steps = pace.position_at(step, max_steps), pace.span
    return StepValues(
        lr_factor(position, max_steps or UNKNOWN_END, config.schedule),
        momentum=momentum_factor(step, config.optimizer),
        ema=ema_share(step, config),
    )


def learning_rate_at(step: int, max_steps: int | None, config: Config, pace: Pace | None = None) -> float:
    """`optimizer.learning_rate` in the update that makes step `step`; the others as in `step_values`."""
    return config.optimizer.learning_rate * step_values(step, max_steps, config, pace).learning_rate


def momentum_factor(step: int, optimizer: Optimizer) -> float:
    """Share of `optimizer.momentum` for the update that makes step `step` (1 = the first).

    It rises linearly from `momentum_start` on (Jordan et al. 2024).
    """
    done = (step - 1) / optimizer.momentum_warmup_steps if optimizer.momentum_warmup_steps else 1.0
    if done >= 1.0 or optimizer.momentum == 0.0:
        return 1.0
    start = optimizer.momentum_start / optimizer.momentum
    return start + (1.0 - start) * done


def ema_share(step: int, config: Config) -> float:
    """The share s (0 to 1, no unit) of the new weights in their moving average, which becomes
    (1 - s) average + s weights, after the update that makes step `step` (1 = the first); 0.0 in steps that
    leave the average as it is.

    s = 1 - min(decay ** every_steps, (1 + n) / (10 + n)) in the n-th update of the average, as in
    TensorFlow's tf.train.ExponentialMovingAverage: it spans about the last tenth of its updates until
    `decay`, of one step, lets it span no more. `half_life_tokens`, after which weights count half as much,
    gives decay = 0.5 ** (tokens of a step / half_life_tokens) (Busbridge et al. 2023, How to scale your EMA).
    """
    ema = config.train.ema
    if not ema.on or step % ema.every_steps:
        return 0.0
    decay = ema.decay
    if decay is None:
        assert ema.half_life_tokens is not None
        decay = 0.5 ** (config.train.global_batch_size * config.data.row_length / ema.half_life_tokens)
    updates = step // ema.every_steps
    return 1.0 - min(decay**ema.every_steps, (1 + updates) / (10 + updates))


def lr_factor(step: float, max_steps: int, schedule: Schedule) -> float:
    """Share of the peak learning rate for the update that makes step `step` (1 = the first).

    step: a whole number, but in a run whose pace was changed; a registered schedule is then asked for the
    nearest. max_steps: of the run, which the schedule spans unless it has `steps` of its own. The warm-up
    rises linearly and reaches the peak at its last step; the decay reaches `min_lr_ratio` at the end of the
    span. WSD: warm-up, stable, decay (Hu et al. 2024). A registered schedule is asked after the warm-up.
    """
    span = schedule.steps or max_steps
    if step <= schedule.warmup_steps:
        return step / schedule.warmup_steps
    if (registered := find("schedule", schedule.name)) is not None:
        return _registered_factor(registered, round(step), span, schedule)
    if schedule.name == "constant":
        return 1.0
    start = schedule.warmup_steps
    shape: str = schedule.name
    if shape == "wsd":
        shape = schedule.decay_shape
        start = max(start, span - round(schedule.decay_fraction * span))
    if step <= start:
        return 1.0
    done = min(1.0, (step - start) / (span - start)) if span > start else 1.0
    left = 1.0 - done
    if shape == "cosine":
        left = (1.0 + math.cos(math.pi * done)) / 2.0
    elif shape == "sqrt":
        left = 1.0 - math.sqrt(done)
    return schedule.min_lr_ratio + (1.0 - schedule.min_lr_ratio) * left


def _registered_factor(component: Component, step: int, span: int, schedule: Schedule) -> float:
    factor = component.make(step, span, schedule)
    if not isinstance(factor, int | float) or not 0.0 <= factor < math.inf:
        raise UserError(
            f"the schedule {component.name!r} ({component.origin}) gave {factor!r} for step {step}; it must "
            "return a finite number of at least 0, the share of optimizer.learning_rate"
        )
    return float(factor)
