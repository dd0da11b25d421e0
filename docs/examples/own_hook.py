"""A hook of one's own: a checkpoint at each record of the held-out loss, which is remembered across restarts.

In the configuration: `plugins: [own_hook]` and `hooks: [{type: save-best, margin: 0.01}]`; from Python
`llmkit.train(llmkit.load("mine.yaml"), hooks=[SaveBest(SaveBest.Config(margin=0.01))])`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

import llmkit


@llmkit.register("hook", "save-best")
class SaveBest(llmkit.Hook):
    """Asks for a checkpoint after an evaluation that is better than all before."""

    class Config(llmkit.Section):
        """What counts as better."""

        margin: Annotated[float, Field(ge=0.0)] = 0.0
        """By how much the loss must be lower, in nats per token."""

    def __init__(self, config: Config) -> None:
        self.margin, self.best, self.is_record = config.margin, float("inf"), False

    def after_step(self, t: llmkit.Trainer, result: llmkit.StepResult) -> None:
        """Adds a column to metrics.jsonl: a number of the device, which nobody waits for here."""
        t.record("clipped", (result.grad_norm > 1.0).float(), reduce="mean")

    def after_evaluate(self, t: llmkit.Trainer, evaluation: llmkit.Evaluation) -> None:
        """All ranks get the same loss."""
        self.is_record = evaluation.loss < self.best - self.margin
        self.best = min(self.best, evaluation.loss)

    def request(self, t: llmkit.Trainer) -> llmkit.Request | None:
        """Asked after each step; the requests of all hooks and ranks are merged."""
        wanted, self.is_record = self.is_record, False
        return llmkit.Request(save=True) if wanted else None

    def state(self) -> dict[str, Any]:
        """Goes into each checkpoint."""
        return {"best": self.best if self.best < float("inf") else None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Comes from the checkpoint that a run goes on with."""
        self.best = float("inf") if state["best"] is None else state["best"]
