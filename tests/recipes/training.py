"""Training steps of what `llmkit new` writes, without files."""

from __future__ import annotations

import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import Batch
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.parallel.mesh import Mesh
from llmkit.plan import DeviceFacts, plan_for_shape
from llmkit.recipes.compose import Source, compose
from llmkit.recipes.document import plain
from llmkit.recipes.rules import Size, budget

ROWS, LENGTH, VOCABULARY = 8, 64, 257
CPU = torch.device("cpu")


def stdlib_text() -> bytes:
    """Some of Python's own library."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    return b"".join((folder / f"{name}.py").read_bytes() for name in ("ast", "csv", "os", "re/_parser"))


def batches(count: int, seed: int = 0) -> list[Batch]:
    """Rows of bytes from random places of a text."""
    text = torch.frombuffer(bytearray(stdlib_text()), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        starts = torch.randint(0, len(text) - LENGTH - 1, (ROWS, 1), generator=generator)
        rows = text[starts + torch.arange(LENGTH + 1)]
        found.append(Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()))
    return found


def engine_of(size: Size, optimizer: Mapping[str, Any] = {}, seed: int = 0) -> Engine:
    """What trains a model by the recipe, in fp32."""
    source = Source({"type": "stdlib"}, {"type": "bytes"})
    sections = plain(compose("run", size, budget(size), source, None, 1))
    sections["run"]["seed"] = seed
    sections["train"] |= {"global_batch_size": ROWS, "micro_batch_size": ROWS, "precision": "fp32"}
    sections["kernels"] = {"compile": False}
    del sections["model"]
    return build_engine(plan_for_shape(size.shape, sections, DeviceFacts()), Mesh(), device=CPU)


def train(engine: Engine, steps: int, seed: int = 0) -> float:
    """Mean loss of the last tenth of so many steps at the peak rates."""
    losses = []
    for batch in batches(steps, seed):
        losses.append(engine.train_step([batch], batch.labels.numel()).loss_sum / batch.labels.numel())
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())


@torch.no_grad()
def features(engine: Engine) -> Tensor:
    """What the last block gives for some text: (rows, length, width)."""
    kept: list[Tensor] = []
    blocks = engine.model.blocks
    handle = blocks[len(blocks) - 1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        engine.model(batches(1, seed=1)[0])
    finally:
        handle.remove()
    (found,) = kept
    return found if isinstance(found, Tensor) else found[0]
