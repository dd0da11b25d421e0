"""One run, assembled: what the loop and its hooks work on."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from llmkit.checkpoint.format import folder_name
from llmkit.checkpoint.write import save
from llmkit.config.custom_model import AnyModel
from llmkit.config.schema import Config
from llmkit.data.evaluation import HeldOut
from llmkit.data.loader import TrainLoader
from llmkit.data.prepared import Prepared
from llmkit.engine.base import Engine, StepResult
from llmkit.loop.clock import Clock
from llmkit.loop.control import NOTHING, Control, Wishes
from llmkit.loop.progress import Progress
from llmkit.monitor.console import Console
from llmkit.monitor.events import EventLog
from llmkit.monitor.metrics import MetricsFile
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh
from llmkit.run_folder import RunFolder


@dataclass
class Run:
    """The parts of a run, none of which knows another."""

    config: Config
    folder: RunFolder
    shape: AnyModel
    device: torch.device
    precision: str
    data: Prepared
    heldout: HeldOut | None
    loader: TrainLoader
    engine: Engine
    progress: Progress
    console: Console
    metrics: MetricsFile
    events: EventLog
    mesh: Mesh
    layout: Layout
    control: Control
    was_done: bool
    """Whether the run had reached its end when this process found it."""
    agreed: Wishes = NOTHING
    """What holds after the newest step."""
    clock: Clock = field(default_factory=Clock)
    in_step: bool = False
    """Whether a step has begun, by taking its batch, and is not over: then nothing can be saved."""
    saved_step: int | None = None
    save_seconds: float = 0.0
    """What the last save took."""

    @property
    def checkpoint(self) -> Path:
        """Where the checkpoint of this moment lies, once it is saved."""
        return self.folder.checkpoints / folder_name(self.progress.step)

    @property
    def evaluation_due(self) -> bool:
        """Whether `evaluate.every_steps` asks for an evaluation at this step."""
        every, step = self.config.evaluate.every_steps, self.progress.step
        return self.heldout is not None and every > 0 and step > 0 and step % every == 0

    @property
    def may_end_here(self) -> bool:
        """Whether this may be the last step: by the number of steps, or by what its evaluation will say."""
        patience, without = self.config.evaluate.early_stopping, self.progress.evaluations_without_gain
        last_chance = self.evaluation_due and patience is not None and without + 1 >= patience
        return last_chance or self.progress.finished()

    @property
    def unsaved_steps(self) -> int:
        """Steps that no checkpoint holds."""
        return self.progress.step - (self.saved_step or 0)

    def save(self) -> Path:
        """Writes a checkpoint of this moment, unless there is one; waits until it is on disk.

        All ranks call it. Raises RunFault, on all of them, where it cannot be written; what was there
        before is then still there.
        """
        if self.saved_step == self.progress.step:
            return self.checkpoint
        began = time.monotonic()
        state: dict[str, Any] = {
            "progress": self.progress.to_json(),
            "data": self.loader.state(self.mesh.all_gather_text),
            "updates": self.engine.optimizer_steps,
            "precision": self.precision,
            "started_in": os.getcwd(),  # where relative paths of the settings start from
        }
        path = save(
            self.folder.checkpoints,
            self.progress.step,
            self.engine.read_pieces(),
            state=state,
            model=self.shape.to_dict(),
            config=self.config.model_dump(mode="json"),
            extra_files=self.data.tokenizer.files(),
            keep_last=self.config.checkpoint.keep_last,
            mesh=self.mesh,
            note=self.console.note,
        )
        self.saved_step, self.save_seconds = self.progress.step, time.monotonic() - began
        self.events.record("save", step=self.progress.step, path=path.name)
        return path


class Hook(Protocol):
    """Something that happens after steps; hooks are called in the order of their list."""

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """`run.progress` already counts the step; `result` is still on the device."""
        ...
