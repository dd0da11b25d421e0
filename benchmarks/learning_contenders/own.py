"""llmkit's recipe, in the engine that `llmkit train` builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning_contenders import Task
from benchmarks.learning_sizes import Size
from llmkit.batch import IGNORE, Batch
from llmkit.config.load import Loaded
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.schema import Config
from llmkit.device import device_facts
from llmkit.engine.build import build_engine
from llmkit.optim.schedule import step_values
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Known, resolve_plan

CPU = torch.device("cpu")


def settings(name: str, size: Size) -> dict[str, Any]:
    """The sections that say what is computed."""
    config = size.config(0, size.steps, Path("cache")).model_dump(mode="json")
    del config["train"]["max_steps"], config["train"]["precision"]
    return {section: config[section] for section in ("model", "train", "optimizer", "schedule")}


def build(name: str, task: Task) -> Own:
    """The model in its engine, with the initial weights of the seed."""
    return Own(task)


class Own:
    """llmkit's engine, one process."""

    def __init__(self, task: Task) -> None:
        config = task.text.config(task.seed, task.steps)
        update: dict[str, Any] = {
            "optimizer": scaled(config.optimizer, task.factor),
            "train": config.train.model_copy(update={"precision": task.precision}),
        }
        if not task.compiled:
            update["kernels"] = config.kernels.model_copy(update={"compile": False})
        self._config: Config = config.model_copy(update=update)
        self._steps, self._number = task.steps, 0
        facts = device_facts(CPU, compiled=self._config.kernels.compile is not False)
        known = Known(world_size=1, tokenizer_size=task.text.tokenizer_size, device=facts)
        plan = resolve_plan(Loaded.of(self._config), known)
        self.parameters = plan.model.num_parameters
        self._engine = build_engine(plan, Mesh(), device=CPU, note=lambda line: None)

    def step(self, batch: Batch) -> None:
        """As the trainer takes it."""
        self._number += 1
        targets = int((batch.labels != IGNORE).sum())
        self._engine.train_step([batch], targets, step_values(self._number, self._steps, self._config))

    def nats(self, batch: Batch) -> Tensor:
        """By the engine's evaluation."""
        return self._engine.evaluate([batch]).nats.double().sum()


def scaled(optimizer: Optimizer, factor: float) -> Optimizer:
    """The same optimizer with all its learning rates times `factor`, the groups' too."""
    groups = [
        group.model_copy(update={"learning_rate": group.learning_rate and factor * group.learning_rate})
        for group in optimizer.groups
    ]
    update: dict[str, Any] = {"learning_rate": factor * optimizer.learning_rate, "groups": groups}
    return optimizer.model_copy(update=update)
