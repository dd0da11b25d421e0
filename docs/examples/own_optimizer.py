"""An optimizer and a schedule of one's own: Lion (Chen et al. 2023), and the inverse square root of the step.

In the configuration: `plugins: [own_optimizer]`, `optimizer: {name: lion, learning_rate: 1e-4}` and
`schedule: {name: inverse-sqrt, warmup_steps: 100}`. Lion looks at one element at a time, so that it runs
under ZeRO and tensor parallelism too.
"""

import math
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

import llmkit


@llmkit.register("optimizer", "lion")
class Lion(llmkit.Optimizer):
    """The sign of an interpolated momentum, with decoupled weight decay."""

    states = ("momentum",)
    elementwise = True

    class Config(llmkit.Section):
        """The optimizer Lion; its learning rate is about a tenth of AdamW's."""

        beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.99
        """Decay of the momentum."""
        mix: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9
        """Share of the momentum in the update; the rest is the gradient."""

    def update(
        self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """One step of one tensor, in place."""
        momentum = state["momentum"]
        direction = momentum.lerp(gradient, 1.0 - self.settings.mix).sign_()
        parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
        momentum.lerp_(gradient, 1.0 - self.settings.beta)


@llmkit.register("schedule", "inverse-sqrt")
def inverse_sqrt(step: int, span: int, settings: Any) -> float:
    """The share of the peak learning rate at a step after the warm-up; span: of the run, in steps."""
    return math.sqrt(max(settings.warmup_steps, 1) / step)
