"""What the processes of the tests of evaluation run; each returns figures, the tests judge them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from llmkit.batch import Batch
from llmkit.engine.base import Engine
from llmkit.engine.build import build_engine
from llmkit.errors import RunFault, UserError
from llmkit.evaluation.command import evaluate_by_tasks
from llmkit.evaluation.harness import Tasks, figures, run_tasks
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.evaluation.team import Lead, led
from llmkit.inference import evaluate_weights
from llmkit.parallel.context import context_parallel
from llmkit.parallel.mesh import Mesh, make_mesh
from llmkit.plan import DeviceFacts, Plan, plan_for_shape
from llmkit.weights import open_weights
from tests.engine.rank_cases import BUCKETS, CONFIG, ENGINES, Weights
from tests.evaluation import toys

LENGTH = 24


def engine_of(stage: str, mesh: Mesh, adapters: int = 0, **options: Any) -> tuple[Engine, Plan]:
    """The toy's weights in an engine on this mesh. adapters: their rank, without effect as they begin."""
    train: dict[str, Any] = {"precision": "fp32", "micro_batch_size": 4 // mesh["data"].size}
    if adapters:
        train |= {"lora": {"rank": adapters}, "init_from": "the toy"}
    settings = {
        **CONFIG,
        "train": {**CONFIG["train"], **train},
        "parallel": {
            "world_size": mesh.world_size, "tensor_parallel_size": mesh["tensor"].size, **ENGINES[stage],
            **options,
        },
    }  # fmt: skip
    if options.get("context_parallel_form") == "ring":  # which has a form of attention of its own
        settings["kernels"] = {"compile": False}
    plan = plan_for_shape(toys.shape(), settings, DeviceFacts())
    weights = Weights(toys.model())
    given = {"base": weights} if adapters else {"source": weights}
    return build_engine(plan, mesh, device=torch.device("cpu"), buckets=BUCKETS, **given), plan


def step(engine: Engine, mesh: Mesh, plan: Plan) -> float:
    """The loss of a step on tokens that depend on nothing else."""
    rows = torch.randint(toys.shape().vocab_size, (4, LENGTH + 1), generator=torch.Generator().manual_seed(3))
    mine = rows[mesh["data"].rank :: mesh["data"].size]
    ranges = context_parallel(mesh, plan.layout.context_parallel_form).own(LENGTH)
    result = engine.train_step([Batch(mine[:, :-1], mine[:, 1:]).cut(ranges)], 4 * LENGTH)
    return float(result.loss_sum)


def in_engines(folder: str, layouts: list[list[Any]]) -> list[dict[str, Any]]:
    """The figures of each layout, and the losses of steps before and after the evaluation."""
    tasks, found = Tasks(toys.NAMES, folder, limit=5), []
    for stage, tensor_size, options in layouts:
        mesh = make_mesh(tensor_size, context_size=options.get("context_parallel_size", 1))
        engine, plan = engine_of(stage, mesh, **options)
        before: list[int] = []
        scorer = Scorer.of_engine(
            engine, plan, HubText(toys.tokenizer()), mesh, 200, before_batch=partial(before.append, 1)
        )
        results = led(scorer, lambda lead: run_tasks(tasks, lead, {}, quiet=True))
        losses = [step(engine, mesh, plan) for _ in range(2)]
        found.append({"figures": results and figures(results), "batches": len(before), "losses": losses})
        engine.close()
    return found


def of_weights(path: str, folder: str, sizes: list[int]) -> list[dict[str, float] | None]:
    """The figures of stored weights on meshes with these tensor dimensions."""
    weights, found = open_weights(Path(path)), []
    for size in sizes:
        results = evaluate_by_tasks(weights, Tasks(toys.NAMES, folder, 0, 3), make_mesh(size), "fp32", rows=2)
        found.append(results and figures(results))
    return found


def of_held_out(path: str, other: str, sizes: list[int]) -> list[list[float]]:
    """The losses of stored weights on what the run held out, and on other text, as `of_weights`."""
    weights, found = open_weights(Path(path)), []
    for size in sizes:
        mesh = make_mesh(size)
        losses = [evaluate_weights(weights, "fp32", data, lambda line: None, mesh) for data in (None, other)]
        found.append([loss.loss for loss in losses])
    return found


def errors() -> list[str]:
    """What each rank gets where rank 0 fails: by a mistake of the user's, and by a bug."""
    scorer = Scorer.of_model(toys.model(), HubText(toys.tokenizer()), make_mesh(1), 100)
    found = []

    def mistaken(lead: Lead) -> None:
        raise UserError("there is no such task")

    def broken(lead: Lead) -> None:
        raise ZeroDivisionError("division by zero")

    for work in (mistaken, broken):
        try:
            led(scorer, work)
        except (UserError, RunFault, ZeroDivisionError) as error:
            found.append(f"{type(error).__name__}: {error}")
    return found
