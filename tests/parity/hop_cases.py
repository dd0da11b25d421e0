"""A mixture of experts that goes on under one layout after the other; see test_hop.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmkit.checkpoint import read
from llmkit.checkpoint.write import save
from llmkit.device import device_facts
from llmkit.engine.complete import complete_model
from llmkit.parallel.context import context_parallel
from llmkit.parallel.mesh import Mesh
from llmkit.parity.run import VALUES, make_engine, make_plan
from llmkit.parity.subjects import LENGTH, MODELS, ROWS, RandomWeights, count_targets, global_batch, share
from tests.parity.launched import mesh_maker

_FORM = MODELS["two-experts"]
SHAPE = replace(_FORM, moe=_FORM.moe.model_copy(update={"bias_update_rate": 0.02}))
"""Its biases move after each step, so that they are in checkpoints and in the complete models."""
STEPS = 2
"""Under each layout."""
LAYOUTS: list[dict[str, Any]] = [
    {"zero_stage": 2, "engine": "native", "tensor_parallel_size": 2, "expert_parallel_size": 2},
    {"context_parallel_size": 2, "context_parallel_form": "ulysses", "expert_parallel_size": 4},
    {"zero_stage": 3, "engine": "deepspeed", "tensor_parallel_size": 2},
    {
        "zero_stage": 1, "context_parallel_size": 2, "context_parallel_form": "ulysses",
        "expert_parallel_size": 2,
    },
]  # fmt: skip
"""Settings of the section `parallel`, of four processes."""


def hop(root: str) -> list[list[float]]:
    """Loss and norm of each step, and behind those of a layout the loss of its complete model.

    From a layout to the next through a checkpoint on the disk.
    """
    meshes, found = mesh_maker(), list[list[float]]()
    source: Any = RandomWeights(SHAPE)
    for number, layout in enumerate(LAYOUTS):
        names = ("tensor_parallel_size", "context_parallel_size", "expert_parallel_size")
        mesh = meshes(*(layout.get(name, 1) for name in names))
        found += train({"world_size": 4, **layout}, mesh, number * STEPS, STEPS, source, root)
        source = read.load(Path(root) / f"step-{(number + 1) * STEPS:08d}")
    return found


def alone() -> list[list[float]]:
    """The same on one process."""
    return train({"world_size": 1}, Mesh(), 0, STEPS * len(LAYOUTS), RandomWeights(SHAPE), None)


def train(
    layout: dict[str, Any], mesh: Mesh, first: int, steps: int, source: Any, root: str | None
) -> list[list[float]]:
    """Goes on from `source` after `first` steps; saves under `root` at the end."""
    cpu, found = torch.device("cpu"), list[list[float]]()
    engine = make_engine(SHAPE, layout, mesh, cpu, "fp32", 1, "muon")
    plan = make_plan(SHAPE, layout, ROWS // mesh["data"].size, device_facts(cpu), "fp32", "muon")
    engine.write_pieces(source, first)
    ranges = context_parallel(mesh, "ulysses").own(LENGTH)
    for step in range(first, first + steps):
        batch = global_batch(SHAPE, step, masked=True)
        mine = share(batch, mesh["data"].rank, mesh["data"].size, 1)
        result = engine.train_step([each.cut(ranges) for each in mine], count_targets(batch), VALUES)
        found.append([float(result.loss_sum) / result.targets, float(result.grad_norm)])
        if (step + 1) % STEPS == 0:
            rows = complete_model(engine, plan, mesh)(global_batch(SHAPE, 99, masked=True))
            found.append([float(rows.nats.detach().double().sum())])
    if root is not None:
        save(
            Path(root), first + steps, engine.read_pieces(), state={}, model=SHAPE.to_dict(), config={},
            extra_files={}, keep_last=9, mesh=mesh,
        )  # fmt: skip
    engine.close()
    return found
