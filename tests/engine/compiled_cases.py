"""What the processes of tests/engine/test_compiled.py run: engines whose models are compiled."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo
from torch._dynamo.utils import counters

from llmkit.engine.build import build_engine
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import make_mesh
from llmkit.plan import DeviceFacts, plan_for_shape
from tests.engine.rank_cases import (
    BUCKETS,
    CONFIG,
    CPU,
    ENGINES,
    ROWS,
    SHAPES,
    Weights,
    reference,
    step_batches,
    train,
)
from tests.shapes import random_model

COMPILER = "aot_eager_decomp_partition"  # all of torch.compile but the generated code
RECOMPUTED = {"activation_checkpointing": "full", "activation_checkpointing_every": 2}
CASES: dict[str, dict[str, Any]] = {
    "native": ENGINES["native 0"],
    "stage 1": ENGINES["deepspeed 1"],
    "stage 2": ENGINES["deepspeed 2"],
    "stage 3": ENGINES["deepspeed 3"],
    "native, recomputed": {**ENGINES["native 0"], **RECOMPUTED},
    "stage 3, recomputed": {**ENGINES["deepspeed 3"], "activation_checkpointing": "full"},
    "stage 3, half recomputed": {**ENGINES["deepspeed 3"], **RECOMPUTED},
    "stage 3, selective": {**ENGINES["deepspeed 3"], "activation_checkpointing": "selective"},
}


def full_parameters(model: torch.nn.Module) -> int:
    """How many parameters this rank holds whole."""
    return sum(parameter.numel() > 0 for parameter in model.parameters())


def compare(style: str, cases: list[str]) -> dict[str, Any]:
    """Each case: its rows, and the graphs made by training and by evaluations; one process, not compiled."""
    compile_parts = GPT.compile_parts
    GPT.compile_parts = lambda self, report: compile_parts(self, report, COMPILER)
    whole, rows = reference(style, "fp32", 1, 3, "adamw")
    mesh, shape = make_mesh(1), SHAPES[style]
    unseen = step_batches(shape, 99, mesh, 1)[0]
    found: dict[str, Any] = {"reference": rows}
    wanted = mesh["data"].sum(whole.evaluate(unseen).nats.double().sum()).item()
    for name, parallel in ((name, CASES[name]) for name in cases):
        torch._dynamo.reset()
        counters.clear()
        told: list[str] = []
        settings = {
            **CONFIG,
            "kernels": {"compile": True, "operators": {"attention": "sdpa"}},
            "train": {**CONFIG["train"], "precision": "fp32", "micro_batch_size": ROWS // mesh.world_size},
            "parallel": {"world_size": mesh.world_size, **parallel},
        }
        engine = build_engine(
            plan_for_shape(shape, settings, DeviceFacts()), mesh, device=CPU, note=told.append,
            source=Weights(random_model(shape)), buckets=BUCKETS,
        )  # fmt: skip
        rows = train(engine, shape, mesh, 1, range(3))
        graphs, held = counters["stats"]["unique_graphs"], [full_parameters(engine.model)]
        nats = [mesh["data"].sum(engine.evaluate(unseen).nats.double().sum()).item() for _ in range(2)]
        after = counters["stats"]["unique_graphs"]
        found[name] = {
            "rows": rows,
            "graphs": graphs,
            "of evaluations": after - graphs,
            "evaluation": [each / wanted for each in nats],
            "again": train(engine, shape, mesh, 1, [3])[0],
            "of training after them": counters["stats"]["unique_graphs"] - after,
            "held": [*held, full_parameters(engine.model)],
            "limits": [str(reason) for reason in counters["graph_break"] if "limit" in str(reason)],
            "breaks": sum(counters["graph_break"].values()),
            "told": told,
        }
        engine.close()
    return found
