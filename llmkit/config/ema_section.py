"""The settings of the moving average of the weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llmkit.config.section import Positive, Section


class Ema(Section):
    """Exponential moving average of the trained weights, kept in fp32 and in every checkpoint; `--ema` of
    evaluate, generate, serve, inspect and export takes it. Off unless decay or half_life_tokens is given."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Share of the average that a step keeps, as in 0.999. It is smaller at first: (1 + n) / (10 + n) in the
    n-th update, so that the average spans about the last tenth of the updates."""
    half_life_tokens: Positive | None = None
    """Instead of decay, and the same for any batch size: weights of this many tokens ago count half."""
    every_steps: Positive = 1
    """Steps between updates of the average, which then keeps decay to the power of this."""
    evaluate: bool = False
    """Evaluations during training compute the held-out loss of the averaged weights, too: `eval_ema_loss`."""

    @property
    def on(self) -> bool:
        """Whether there is an average."""
        return self.decay is not None or self.half_life_tokens is not None
