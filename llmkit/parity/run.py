"""Training a case, and what it is compared by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmkit.batch import Ranges
from llmkit.checkpoint.pieces import EMA
from llmkit.config.shape import ModelShape
from llmkit.device import device_facts
from llmkit.engine.base import Engine, StepResult
from llmkit.engine.build import build_engine
from llmkit.engine.layer_sums import GRADIENT, UPDATE, WEIGHT
from llmkit.optim.schedule import StepValues
from llmkit.parallel.context import context_parallel
from llmkit.parallel.mesh import Mesh
from llmkit.parity.cases import Case
from llmkit.parity.memory import memory_differences, watched_buckets, watched_gradients
from llmkit.parity.state import State, drifted, gather_state
from llmkit.parity.subjects import (
    ADAPTERS,
    LENGTH,
    MODELS,
    ROWS,
    RandomWeights,
    count_targets,
    global_batch,
    share,
)
from llmkit.plan import DeviceFacts, Plan, plan_for_shape
from llmkit.plan.buckets import BucketSizes
from llmkit.plan.communication_memory import native_buffers
from llmkit.plan.form_rules import Situation
from llmkit.plan.operators import FORMS
from llmkit.plan.state_memory import state_memory

STEPS = 10
GRADIENT_STEPS = (0, 4, 9)
"""Steps of which every parameter's gradient is compared."""
LARGE, LARGE_STEPS = 10**6, 2
"""A model with so many parameters takes few steps, and all of its gradients are compared."""
BETA1 = 0.9
"""Decay of the first moments, Muon's too."""
BUCKETS = BucketSizes(native=32_000, deepspeed=3000, persistent=500)
"""Small models are partitioned and sent in as many parts as large ones."""
OPTIMIZER: dict[str, Any] = {
    "learning_rate": 1e-3, "betas": [BETA1, 0.95], "momentum": BETA1, "eps": 1e-5, "weight_decay": 0.1,
    "groups": [
        {"params": ["embedding.weight"], "learning_rate": 3e-3, "betas": [BETA1, 0.9], "weight_decay": 0.0},
        {"params": ["blocks.0.attention.o_proj.*"], "learning_rate": 2e-3, "weight_decay": 0.3},
        {"params": ["blocks.0.mlp.*_proj.weight"], "name": "adamw", "eps": 1e-4},
    ],
}  # fmt: skip
"""Its groups match names that all models have, of matrices and of biases."""
ADAPTER_GROUPS = [{"params": ["blocks.0.*.lora_B"], "learning_rate": 4e-3, "name": "adamw"}]
SETTINGS: dict[str, Any] = {
    "data": {"sources": [{"type": "stdlib"}], "sequence_length": LENGTH},
    "train": {
        "max_steps": STEPS, "global_batch_size": ROWS, "gradient_clipping": 0.5, "ema": {"decay": 0.7},
    },
    "kernels": {"compile": False},
}  # fmt: skip
VALUES = StepValues(ema=0.3)
"""Of each step."""


@dataclass
class Trajectory:
    """What a run of `STEPS` steps went through.

    losses: mean nats a target; norms: before clipping; gradients: step -> name -> full clipped gradient;
    parts: step -> what is measured of it -> numbers, those of the loss by source and position, and of layers;
    state: masters, their moving average and moments at the end; drifted: weights that ranks should hold
    alike, but do not any more; optimizer_steps: how many steps were not skipped; memory: where the state
    takes not the bytes planned.
    """

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    gradients: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    parts: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    state: State = field(default_factory=dict)
    drifted: list[str] = field(default_factory=list)
    optimizer_steps: int = 0
    memory: list[str] = field(default_factory=list)


def run_case(case: Case, mesh: Mesh, device: torch.device) -> Trajectory:
    """Trains the case; the trajectory is the same on all ranks, which must call this together.

    Raises ValueError, on all of them, unless their pieces of the state are all of it.
    """
    engine = make_engine(
        MODELS[case.model], case.parallel, mesh, device, case.precision, case.accumulation, case.optimizer,
        case.kernels, case.adapters, case.length,
    )  # fmt: skip
    ranges = context_parallel(mesh, "ring" if case.context_form == "ring" else "ulysses").own(case.length)
    try:
        engine.write_pieces(RandomWeights(MODELS[case.model], case.adapters), optimizer_steps=0)
        with watched_gradients(engine) as gradients, watched_buckets(engine) as buckets:
            shape, rows = MODELS[case.model], (case.masked, case.length, ranges)
            found = train(engine, shape, mesh, device, case.accumulation, *rows)
        found.memory = memory_differences(engine, planned_memory(case, device), gradients, buckets, mesh)
        return found
    finally:
        engine.close()
        if case.compiled:  # graphs of one case would count against the limit of another
            torch.compiler.reset()


def run_alone(
    model: str,
    masked: bool,
    precision: str,
    device: torch.device,
    optimizer: str = "adamw",
    adapters: bool = False,
    length: int = LENGTH,
) -> Trajectory:
    """The same on a single process: no layout, all rows at once, nothing recomputed."""
    alone = Case(
        model, 0, 1, 1, False, 1, "none", masked, precision, "none", optimizer,
        adapters=adapters, length=length,
    )  # fmt: skip
    return run_case(alone, Mesh(), device)


def planned_memory(case: Case, device: torch.device) -> dict[str, int]:
    """Bytes that a process of the case keeps from step to step, and those of buckets, by its plan."""
    facts = device_facts(device, compiled=case.compiled)
    micro = ROWS // case.data // case.accumulation
    plan = make_plan(
        MODELS[case.model], case.parallel, micro, facts, case.precision, case.optimizer, case.kernels,
        case.adapters, case.length,
    )  # fmt: skip
    arguments = plan.config, plan.model, plan.precision, plan.layout, BUCKETS
    own = plan.layout.engine == "native"
    return {**state_memory(*arguments).parts, **(native_buffers(*arguments) if own else {})}


def refusal(case: Case, device: DeviceFacts) -> str | None:
    """Why a form that the case names cannot be computed on the device; None where all of them can."""
    plan = make_plan(MODELS[case.model], case.parallel, ROWS // case.data, device, case.precision)
    situation = Situation(plan.config, MODELS[case.model], plan.layout, plan.precision, device, case.compiled)
    reasons = (
        form.refuses(situation)
        for operator, name in case.kernels["operators"].items()
        for form in FORMS[operator]
        if form.name == name
    )
    return next(filter(None, reasons), None)


def make_engine(
    shape: ModelShape,
    parallel: Mapping[str, Any],
    mesh: Mesh,
    device: torch.device,
    precision: str,
    accumulation: int,
    optimizer: str = "adamw",
    kernels: Mapping[str, Any] | None = None,
    adapters: bool = False,
    length: int = LENGTH,
) -> Engine:
    """The engine for the rows of `global_batch`. parallel, kernels: settings of those sections."""
    kernels = {**SETTINGS["kernels"], **(kernels or {})}
    micro = ROWS // mesh["data"].size // accumulation
    facts = device_facts(device, compiled=kernels["compile"])
    plan = make_plan(shape, parallel, micro, facts, precision, optimizer, kernels, adapters, length)
    return build_engine(plan, mesh, device=device, buckets=BUCKETS)


def make_plan(
    shape: ModelShape,
    parallel: Mapping[str, Any],
    micro_batch_size: int,
    device: DeviceFacts,
    precision: str,
    optimizer: str = "adamw",
    kernels: Mapping[str, Any] = SETTINGS["kernels"],
    adapters: bool = False,
    length: int = LENGTH,
) -> Plan:
    """The plan for the rows of `global_batch`. parallel, kernels: settings of those sections."""
    train = {**SETTINGS["train"], "precision": precision, "micro_batch_size": micro_batch_size}
    settings = {
        **SETTINGS,
        "data": {**SETTINGS["data"], "sequence_length": length},
        "train": {**train, "init_from": "weights", "lora": ADAPTERS.model_dump()} if adapters else train,
        "parallel": dict(parallel),
        "optimizer": {**OPTIMIZER, "name": optimizer, **({"groups": ADAPTER_GROUPS} if adapters else {})},
        "kernels": dict(kernels),
    }
    return plan_for_shape(shape, settings, device)


def train(
    engine: Engine,
    shape: ModelShape,
    mesh: Mesh,
    device: torch.device,
    accumulation: int,
    masked: bool = False,
    length: int = LENGTH,
    ranges: Ranges | None = None,
) -> Trajectory:
    """`STEPS` or `LARGE_STEPS` steps. A clipped gradient is read from what it adds to the first moment.

    length: of the rows. ranges: the positions of them that this rank has; None: all.
    """
    found = Trajectory()
    large = shape.num_parameters >= LARGE
    for step in range(LARGE_STEPS if large else STEPS):
        before = _first_moments(engine, mesh) if large or step in GRADIENT_STEPS else {}
        batch = global_batch(shape, step, masked, length)
        micro_batches = [
            each.cut(ranges).to(device)
            for each in share(batch, mesh["data"].rank, mesh["data"].size, accumulation)
        ]
        measure = step in GRADIENT_STEPS
        result = engine.train_step(micro_batches, count_targets(batch), values=VALUES, measure=measure)
        found.losses.append(float(result.loss_sum) / result.targets)
        found.norms.append(float(result.grad_norm))
        if measure:
            found.parts[step] = _parts_of(result)
        if before:
            after = _first_moments(engine, mesh)
            found.gradients[step] = {
                name: (after[name] - BETA1 * moment) / (1 - BETA1) for name, moment in before.items()
            }
    found.state = {
        **gather_state(engine, mesh, ["master", EMA, "exp_avg_sq"]),
        "first": _first_moments(engine, mesh),
    }
    found.drifted = drifted(engine.model, mesh)
    found.optimizer_steps = engine.optimizer_steps
    return found


def _parts_of(result: StepResult) -> dict[str, Tensor]:
    """What is measured of a step, by name, on the host."""
    layers = result.layers
    assert layers is not None and result.by_source is not None and result.by_position is not None
    gradients, weights, updates = layers.sums[:, [GRADIENT, WEIGHT, UPDATE]].sqrt().unbind(1)
    squares, elements, largest = layers.of_outputs.unbind(1)
    found = {
        "nats by source": result.by_source, "nats by position": result.by_position,
        "gradients": gradients, "weights": weights, "updates": updates,
        "outputs": (squares / elements.clamp(min=1.0)).sqrt(), "largest outputs": largest,
    }  # fmt: skip
    if result.routing is not None:
        found["routing"] = result.routing
    return {name: each.cpu() for name, each in found.items()}


def _first_moments(engine: Engine, mesh: Mesh) -> dict[str, Tensor]:
    """Name -> first moment, whether AdamW's or Muon's: both are the same mean of gradients."""
    state = gather_state(engine, mesh, ["exp_avg", "momentum_buffer"])
    return {name: moment for moments in state.values() for name, moment in moments.items()}
