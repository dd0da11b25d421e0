"""The loss with which a run begins, computed again from the weights that it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmkit.api import TrainedModel
from llmkit.batch import Batch
from llmkit.engine.native import NativeEngine


def first_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[Batch]]:
    """The micro-batches of the first step of each run that begins from now on in this process."""
    found: list[list[Batch]] = []
    seen: list[NativeEngine] = []
    train_step = NativeEngine.train_step

    def kept(engine: NativeEngine, batches: Sequence[Batch], *arguments: Any, **named: Any) -> Any:
        if not any(engine is each for each in seen):
            seen.append(engine)
            batches = list(batches)
            found.append(batches)
        return train_step(engine, batches, *arguments, **named)

    monkeypatch.setattr(NativeEngine, "train_step", kept)
    return found


def loss_of(weights: Path, tables: tuple[Tensor, Tensor], batches: Sequence[Batch]) -> float:
    """Mean nats a target of a stored model on the batches, with these cosines and sines in all layers."""
    if any(batch.tokens.is_cuda for batch in batches):
        pytest.skip("compared with a computation on the CPU, to its rounding")
    model: Any = TrainedModel(weights).model(device="cpu", precision="fp32")
    model.rope = tables
    with torch.no_grad():
        sums = [model(batch) for batch in batches]
    return float(sum(each.nats.sum() for each in sums) / sum(each.targets.sum() for each in sums))
