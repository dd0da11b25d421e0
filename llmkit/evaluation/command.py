"""`llmkit evaluate --tasks`: lm-eval's tasks on a trained model, on all processes of a launch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llmkit import __version__
from llmkit.device import device_facts
from llmkit.errors import UserError
from llmkit.evaluation.harness import Tasks, check_installed, run_tasks
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.evaluation.team import led
from llmkit.files import write_atomic
from llmkit.inference import load_model
from llmkit.parallel.agreement import on_rank_zero
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.world import launched
from llmkit.plan.batch import choose_scoring_tokens
from llmkit.plan.precision import choose_precision
from llmkit.weights import CheckpointWeights, Weights, model_of, open_weights

RESAMPLES = 1000
"""For the standard errors of metrics without a formula for it."""


def tasks_command(
    path: Path,
    tasks: Tasks,
    *,
    precision: str = "auto",
    rows: int | None = None,
    tensor_size: int = 1,
    output: str | None = None,
    as_json: bool = False,
    ema: bool = False,
) -> int:
    """Prints a table of the tasks' figures, or lm-eval's results as JSON, on rank 0; the exit code.

    rows: of a batch; None = by memory. tensor_size: processes that share each copy of the model. output: file
    that the results are written to. ema: see `open_weights`.
    """
    check_installed()
    check_output("--output", output)
    tasks = replace(tasks, bootstrap=RESAMPLES)
    with launched(tensor_size, os.environ) as mesh:
        results = evaluate_by_tasks(open_weights(path, mesh, ema=ema), tasks, mesh, precision, rows)
        if results is None:
            return 0
        print(json.dumps(without_samples(results)) if as_json else table(results), flush=True)
        if output is not None:
            with write_atomic(Path(output)) as file:
                file.write(json.dumps(results, indent=2).encode() + b"\n")
    return 0


def evaluate_by_tasks(
    weights: Weights, tasks: Tasks, mesh: Mesh, precision: str = "auto", rows: int | None = None
) -> dict[str, Any] | None:
    """lm-eval's results of a trained model, fit for JSON, on rank 0. All ranks of the mesh call it.

    precision: auto = that of the model's run, where it has one.
    """
    scorer, facts = load_scorer(weights, mesh, precision, rows)
    facts["versions"]["lm_eval"] = version("lm_eval")
    return led(scorer, lambda lead: run_tasks(tasks, lead, facts))


def check_output(option: str, path: str | None) -> None:
    """Raises UserError where a file of this name, given by an option, cannot be written."""
    if path is not None and not os.path.isdir(os.path.dirname(path) or "."):
        raise UserError(f"{option} {path}: there is no folder {os.path.dirname(path)}")
    if path is not None and os.path.isdir(path):
        raise UserError(f"{option} {path}: is a folder; name a file in it")


def load_scorer(
    weights: Weights, mesh: Mesh, precision: str, rows: int | None
) -> tuple[Scorer, dict[str, Any]]:
    """A trained model that scores texts, and facts on it, fit for JSON. All ranks of the mesh call it.

    precision, rows: as in `evaluate_by_tasks`.
    """
    spec, config = model_of(weights), weights.config
    if precision == "auto":
        trained = config.get("train", {}).get("precision", "auto")
        precision = "bf16" if trained == "fp8" else trained  # the same weights
    used = choose_precision(precision, device_facts(mesh.device))
    model = load_model(weights, mesh.device, used, mesh)
    layout = Layout(mesh.world_size, tensor_parallel_size=mesh["tensor"].size)
    tokens = choose_scoring_tokens(spec, used, device_facts(mesh.device), layout)
    digest = on_rank_zero(mesh, weights.digest)
    facts = {
        "weights": str(weights.path), "ema": isinstance(weights, CheckpointWeights) and weights.ema,
        "digest": digest, "parameters": model.num_parameters,
        "precision": used.name, "processes": mesh.world_size, "tensor_parallel_size": mesh["tensor"].size,
        "versions": {"llmkit": __version__, "torch": version("torch")},
    }  # fmt: skip
    scorer = Scorer.of_model(model, HubText(weights.tokenizer()), mesh, tokens, rows)
    return scorer, facts


def table(results: Mapping[str, Any]) -> str:
    """lm-eval's own tables of tasks and groups."""
    from lm_eval.utils import make_table

    tables = [make_table(results)]
    if results.get("groups"):
        tables.append(make_table(results, "groups"))
    return "\n".join(tables).rstrip()


def without_samples(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without questions and answers, which can be many."""
    return {name: value for name, value in results.items() if name != "samples"}
