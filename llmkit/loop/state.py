"""The counters of a run: what a checkpoint keeps besides weights, moments and the position in the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from llmkit import __version__
from llmkit.errors import UserError
from llmkit.optim.schedule import Pace


@dataclass
class TrainState:
    """Counters of a run; plain numbers, saved as JSON with each checkpoint."""

    step: int = 0
    """Batches consumed; 1 after the first."""
    tokens: int = 0
    """Targets trained on."""
    max_steps: int | None = None
    """Where the run ends; None until a time budget has been turned into steps."""
    pace: Pace | None = None
    """How the schedule is gone through since `max_steps` was changed on the way; None = a step a step."""
    skipped: int = 0
    """Updates left out because of a non-finite gradient."""
    skipped_in_a_row: int = 0
    """How many of them since the last good update."""
    no_targets: int = 0
    """Steps that changed nothing, as no token of their batch was a target."""
    evaluated_step: int | None = None
    """Step of the newest evaluation."""
    eval_loss: float | None = None
    """Its loss, nats per target."""
    best_eval_loss: float | None = None
    """The lowest so far."""
    best_eval_step: int | None = None
    """Its step; None also where a version until 2026-11-29 has made that evaluation."""
    evaluations_without_gain: int = 0
    """Evaluations since the lowest."""
    tasks_step: int | None = None
    """Step of the newest evaluation by tasks."""
    stopped_early: bool = False
    """Early stopping has ended the run."""
    nats_since_row: float = 0.0
    """Summed loss of the steps since the last row of metrics.jsonl."""
    targets_since_row: int = 0
    """Their targets."""

    def finished(self) -> bool:
        """True where no step is left to do."""
        return self.stopped_early or (self.max_steps is not None and self.step >= self.max_steps)

    def end_after(self, step: int) -> None:
        """Changes where the run ends: at `step`, or now if that has passed.

        What was still to come of the schedule is gone through in the steps that are left.
        """
        before, self.max_steps = self.max_steps, max(step, self.step)
        if before is not None and before != self.max_steps:
            at = self.step if self.pace is None else self.pace.position_at(self.step, before)
            self.pace = Pace(self.step, at, before if self.pace is None else self.pace.span)

    def go_back(self, earlier: TrainState, patience: int | None) -> None:
        """Becomes what it was; the run still ends where it does now, by steps and by the patience of now."""
        end = self.max_steps
        for field in fields(self):
            setattr(self, field.name, getattr(earlier, field.name))
        if self.max_steps is None:
            self.max_steps = end
        elif end is not None:
            self.end_after(end)
        self.apply_patience(patience)

    def record_evaluation(self, loss: float, patience: int | None) -> None:
        """Notes an evaluation at this step, and whether it was one too many without a lower loss."""
        finite = math.isfinite(loss)
        self.evaluated_step, self.eval_loss = self.step, loss if finite else None
        if finite and (self.best_eval_loss is None or loss < self.best_eval_loss):
            self.best_eval_loss, self.best_eval_step, self.evaluations_without_gain = loss, self.step, 0
        else:
            self.evaluations_without_gain += 1
        self.apply_patience(patience)

    def apply_patience(self, patience: int | None) -> None:
        """Ends the run here where so many evaluations were without a lower loss; None = any number may be."""
        self.stopped_early = patience is not None and self.evaluations_without_gain >= patience

    def add_loss(self, loss: float, targets: int) -> None:
        """Counts a step's mean loss, in nats a target; one that is not finite is left out."""
        if math.isfinite(loss):
            self.nats_since_row += loss * targets
            self.targets_since_row += targets

    def take_mean_loss(self) -> float | None:
        """Mean nats a target since the last call, over resumes too; None without a target."""
        nats, targets = self.nats_since_row, self.targets_since_row
        self.nats_since_row, self.targets_since_row = 0.0, 0
        return nats / targets if targets else None

    def to_json(self) -> dict[str, Any]:
        """Every field by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, state: dict[str, Any], origin: str = "a checkpoint") -> TrainState:
        """The state that `to_json` wrote, maybe in an older version.

        origin: names the checkpoint and its version. Raises UserError for a counter that is not known.
        """
        unknown = state.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise UserError(
                f"{origin}: it counts {', '.join(sorted(unknown))}, which llmkit {__version__} does not "
                "know; use the version that wrote it"
            )
        pace = state.get("pace")
        return cls(**state | {"pace": None if pace is None else Pace(*pace)})
