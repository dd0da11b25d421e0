"""What other code may do in a run: hooks, and what they may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.engine.base import StepResult
    from llmkit.loop.trainer import Trainer


@dataclass(frozen=True)
class Request:
    """What a hook asks the trainer for; the requests of all hooks and ranks are merged.

    stop: why to stop the run, "" = do not. It is saved, and the same command goes on with it.
    save: write a checkpoint. evaluate: compute the held-out loss.
    max_steps: finish the run after this step (at once if it has passed), 0 = leave the end where it is.
    """

    stop: str = ""
    save: bool = False
    evaluate: bool = False
    max_steps: int = 0


@dataclass(frozen=True)
class Evaluation:
    """Outcome of an evaluation, the same on all ranks.

    loss: held-out loss in nats per target; not finite where the model's is not. bits_per_byte: None where
    the held-out tokens stand for no text. measures: means over pairs by name, with the objective dpo. parts:
    loss and bits per byte of each data source, where there are several, and the loss by position in the
    document, as columns are named ("loss/web", "loss_at/0-31").
    """

    step: int
    loss: float
    bits_per_byte: float | None
    measures: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float | None] = field(default_factory=dict)


class Hook:
    """Base class of hooks. The trainer calls each method on every rank, hooks in the order of their list.

    A hook that raises is called no more; the run ends with all trained steps saved, and the error names the
    hook. Nothing here may wait for the device at every step, nor communicate on one rank only.
    """

    name: str = ""
    """Names the hook in messages and in checkpoints, one name per hook of a run; "" = the class's name."""

    def on_start(self, t: Trainer) -> None:
        """Before the first step of this process; `t.state` is that of the checkpoint."""

    def request(self, t: Trainer) -> Request | None:
        """Asked after each step on each rank.

        With one process the request holds after this step; with several it takes effect on all ranks after
        the same, next step.
        """
        return None

    def after_step(self, t: Trainer, result: StepResult) -> None:
        """After each step, which `t.state` already counts. The scalars of `result` are on the device."""

    def after_evaluate(self, t: Trainer, evaluation: Evaluation) -> None:
        """After each evaluation."""

    def after_save(self, t: Trainer, path: Path) -> None:
        """When a checkpoint is on disk; `path` is its folder. `t.state` may be some steps ahead of it."""

    def on_end(self, t: Trainer) -> None:
        """After the last step of this process, whether the run is finished or was stopped; all is saved."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this hook, as JSON (finite numbers); that of rank 0."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave, before `on_start`; not called where the checkpoint has nothing of it."""
