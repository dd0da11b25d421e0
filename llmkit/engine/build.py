"""The engine that a layout asks for, with its model built and its initial weights drawn."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from llmkit.config.schema import Config
from llmkit.engine.base import Engine, Objective, next_token
from llmkit.engine.deepspeed_config import deepspeed_config
from llmkit.engine.native import NativeEngine
from llmkit.engine.state_shards import AdaptedWeights, Source
from llmkit.errors import RunFault, UserError
from llmkit.kernels.compile_cache import use_compile_cache
from llmkit.kernels.compiler import each_once
from llmkit.kernels.head_loss import LossTerms
from llmkit.kernels.operators import Operators
from llmkit.model.base import Model
from llmkit.model.build import build_model, tensor_parallel_of
from llmkit.model.initial import InitialWeights
from llmkit.model.lora import add_adapters
from llmkit.parallel.agreement import fail_together
from llmkit.parallel.context import context_parallel
from llmkit.parallel.mesh import Mesh
from llmkit.plan import Plan
from llmkit.plan.buckets import BUCKET_SIZES, BucketSizes
from llmkit.precision import default_type, torch_dtype


def build_engine(
    plan: Plan,
    mesh: Mesh,
    *,
    device: torch.device,
    note: Callable[[str], None] = print,
    source: Source | None = None,
    base: Source | None = None,
    optimizer_steps: int = 0,
    buckets: BucketSizes = BUCKET_SIZES,
    objective: Objective = next_token,
) -> Engine:
    """The model of a complete plan, in its engine, ready for its next step.

    note: is called with a message where torch.compile fails or its cache is damaged. source: weights and
    moments after `optimizer_steps` updates; default: the initial weights of `run.seed`. base: the frozen
    weights of a model with adapters, whose `source` has the adapters alone; default: initial weights too.
    objective: what is minimised. All ranks must call it together.
    Raises UserError for a model with nothing to train, and where compiled code cannot be kept.
    """
    plan.require_complete()
    config, layout, kernels = plan.config, plan.layout, plan.kernels
    operators = Operators.of(kernels.forms)
    if kernels.compiled or operators.generated:
        with fail_together(mesh):
            use_compile_cache(os.environ, int(os.environ.get("LOCAL_WORLD_SIZE") or 1), note)

    make_model = partial(_make_model, plan, mesh, operators, device, note)
    engine: Engine
    if layout.engine == "native":
        engine = NativeEngine(
            make_model(), config.optimizer,
            precision=plan.precision, gradient_clipping=config.train.gradient_clipping, mesh=mesh,
            zero_stage=layout.zero_stage, buckets=buckets, operators=operators, objective=objective,
            ema=config.train.ema.on, note=note,
        )  # fmt: skip
    else:
        configure = partial(deepspeed_config, plan, on_gpu=device.type == "cuda", buckets=buckets)
        engine = _zero_engine(make_model, configure, plan, mesh, operators, objective)
    take_state(engine, config, source, base, optimizer_steps)
    return engine


def _make_model(
    plan: Plan, mesh: Mesh, operators: Operators, device: torch.device, note: Callable[[str], None]
) -> Model:
    """The model on its device, without values; for DeepSpeed's stage 3 made within its own context."""
    config, layout = plan.config, plan.layout
    lora = config.train.lora
    with torch.device(device):
        tp = tensor_parallel_of(plan.model, mesh, layout.sequence_parallel)
        terms = LossTerms(z_loss=config.train.z_loss, label_smoothing=config.train.label_smoothing)
        # Frozen weights have no master, so that they can have the type in which they are used at once.
        frozen = torch_dtype(plan.precision.weights) if lora.rank else torch.get_default_dtype()
        with default_type(frozen):
            recompute = (layout.activation_checkpointing, layout.activation_checkpointing_every)
            context = context_parallel(mesh, layout.context_parallel_form)
            experts = mesh.expert_parallel()
            kept = (config.kernels.mlp_tile, layout.offload_activations)
            model = build_model(plan.model, tp, operators, *recompute, terms, context, experts, *kept)
        if lora.rank:
            add_adapters(model, lora)
    _prepare_parameters(model)
    if plan.kernels.compiled:
        alone = mesh["context", "tensor"].size == mesh["expert"].size == 1
        model.compile_parts(each_once(note) if alone else _refuse)
    return model


def take_state(
    engine: Engine, config: Config, source: Source | None, base: Source | None, optimizer_steps: int
) -> None:
    """Gives an engine its weights and moments; arguments as of `build_engine`. Collective."""
    initial = InitialWeights(engine.model, config.run.seed)
    source = source or initial
    adapts = config.train.lora.rank > 0
    engine.write_pieces(AdaptedWeights(base or initial, source) if adapts else source, optimizer_steps)


def _prepare_parameters(model: Model) -> None:
    """Gives each parameter row-major storage. Raises UserError where none is to be trained."""
    for parameter in model.parameters():  # engines and checkpoints take their memory as it is
        parameter.data = parameter.data.contiguous()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"{type(model).__name__} has no parameter that requires a gradient to train")


def _zero_engine(
    make_model: Callable[[], Model],
    configure: Callable[..., dict[str, Any]],
    plan: Plan,
    mesh: Mesh,
    operators: Operators,
    objective: Objective,
) -> Engine:
    """DeepSpeed's engine. configure: its settings; at stage 3 they are needed before there is a model."""
    from llmkit.engine.zero import ZeroEngine, zero3_init

    if plan.layout.zero_stage == 3:
        settings = configure(largest_parameter=0)
        with zero3_init(settings, mesh, plan.precision):
            model = make_model()
    else:
        model = make_model()
        settings = configure(largest_parameter=max(p.numel() for p in model.parameters() if p.requires_grad))
    return ZeroEngine(
        model, plan.config.optimizer,
        precision=plan.precision, config=settings, mesh=mesh, operators=operators, objective=objective,
        ema=plan.config.train.ema.on,
    )  # fmt: skip


def _refuse(reason: str) -> None:
    """A rank cannot begin anew alone: what it has computed may have sent something to its peers."""
    raise RunFault(f"{reason}. Set kernels.compile=false")
