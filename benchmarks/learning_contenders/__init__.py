"""The recipes that are compared: llmkit's, and three public ones in plain PyTorch.

A recipe is a model and all that trains it. What is the same for all: the batches, their order, the
vocabulary, the held-out text, and bf16 products where the processor has units for them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from benchmarks.learning_sizes import Size, Text
from llmkit.batch import Batch

MODULES = {
    "llmkit": "own",
    "nanogpt": "nanogpt",
    "llama": "llama",
    "nanochat": "nanochat",
    "nanochat-mha": "nanochat",
}
"""Contender -> its module here; each has `build(name, task)` and `settings(name, size)`."""
NAMES = tuple(MODULES)
OURS = "llmkit"
"""Whose processor seconds are everybody's at equal seconds."""


@dataclass(frozen=True)
class Task:
    """What a contender is asked to do.

    seed: of the weights and of the order of the text. steps: that the schedule spans. factor: times all
    learning rates of the recipe. precision: bf16 or fp32. compiled: whether torch.compile may be used.
    """

    text: Text
    seed: int
    steps: int
    factor: float
    precision: str
    compiled: bool

    @property
    def size(self) -> Size:
        """The shape."""
        return self.text.size


class Contender(Protocol):
    """A model under training. parameters: how many it has."""

    parameters: int

    def step(self, batch: Batch) -> None:
        """The next update, from all rows of a step."""
        ...

    def nats(self, batch: Batch) -> Tensor:
        """The loss summed over the targets of a batch, without an update."""
        ...


def build(name: str, task: Task) -> Contender:
    """The contender at its start."""
    return _module(name).build(name, task)


def settings(name: str, size: Size) -> dict[str, Any]:
    """All that the recipe is at this size, as JSON: results of other settings are other results."""
    return _module(name).settings(name, size)


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.learning_contenders.{MODULES[name]}")
