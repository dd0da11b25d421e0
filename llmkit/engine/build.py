"""The engine that a layout asks for, with its model built and its initial weights drawn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from llmkit.config.schema import Config
from llmkit.config.shape import ModelShape
from llmkit.engine.base import Engine
from llmkit.engine.deepspeed_config import deepspeed_config
from llmkit.engine.native import NativeEngine
from llmkit.engine.state_shards import Source
from llmkit.errors import RunFault
from llmkit.model.gpt import GPT
from llmkit.model.initial import InitialWeights
from llmkit.parallel.layout import Layout
from llmkit.parallel.mesh import Mesh


def build_engine(
    shape: ModelShape,
    config: Config,
    layout: Layout,
    mesh: Mesh,
    *,
    device: torch.device,
    precision: str,
    micro_batch_size: int,
    accumulation_steps: int,
    attention_impl: str,
    compiled: bool,
    note: Callable[[str], None] = print,
    source: Source | None = None,
    optimizer_steps: int = 0,
) -> Engine:
    """A model cut as `layout` says, in the engine of its ZeRO stage, ready for its next step.

    attention_impl: the attention form. note: is called with a message where torch.compile fails. source:
    weights and moments after `optimizer_steps` updates; default: the initial weights of `run.seed`. All ranks
    must call it together.
    """
    if compiled and layout.zero_stage == 3 and layout.activation_checkpointing != "none":
        # DeepSpeed gathers weights in the midst of what would be recomputed: no graph holds together.
        note("training without torch.compile: it cannot take recomputed blocks under ZeRO-3")
        compiled = False

    def build_model() -> GPT:
        with torch.device(device):
            tensor = mesh.tensor_parallel(shape.num_key_value_heads, layout.sequence_parallel)
            model = GPT(
                shape,
                attention_impl,
                tensor,
                layout.activation_checkpointing,
                layout.activation_checkpointing_every,
                seed=None,
            )
        model.check_marks()
        if compiled:
            model.compile_parts(_refuse if layout.tensor_parallel_size > 1 else note)
        return model

    engine: Engine
    clipping = config.train.gradient_clipping
    if layout.zero_stage == 0:
        engine = NativeEngine(
            build_model(), config.optimizer, precision=precision, gradient_clipping=clipping, mesh=mesh
        )
    else:
        configure = partial(
            deepspeed_config, layout, precision=precision, gradient_clipping=clipping,
            micro_batch_size=micro_batch_size, accumulation_steps=accumulation_steps,
            num_parameters=shape.num_parameters // layout.tensor_parallel_size, on_gpu=device.type == "cuda",
        )  # fmt: skip
        engine = _zero_engine(build_model, configure, config, layout, mesh, precision)
    engine.write_pieces(source or InitialWeights(engine.model, config.run.seed), optimizer_steps)
    return engine


def _zero_engine(
    build_model: Callable[[], GPT],
    configure: Callable[..., dict[str, Any]],
    config: Config,
    layout: Layout,
    mesh: Mesh,
    precision: str,
) -> Engine:
    """DeepSpeed's engine. configure: its settings; at stage 3 they are needed before there is a model."""
    from llmkit.engine.zero import ZeroEngine, zero3_init

    if layout.zero_stage == 3:
        settings = configure(largest_parameter=0)
        with zero3_init(settings, mesh, precision):
            model = build_model()
    else:
        model = build_model()
        settings = configure(largest_parameter=max(p.numel() for p in model.parameters()))
    return ZeroEngine(model, config.optimizer, config=settings, mesh=mesh)


def _refuse(reason: str) -> None:
    """A rank cannot begin anew alone: what it has computed may have sent something to its peers."""
    raise RunFault(f"{reason}. Set kernels.compile=false")
