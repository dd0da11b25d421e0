"""A model that each rank can sample from by itself, of one whose parameters or activations are shared out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmkit.config.operators import QUANTISED
from llmkit.config.shape import ModelShape
from llmkit.engine.base import Engine
from llmkit.kernels.operators import TORCH, Operators
from llmkit.model.base import Model
from llmkit.model.build import build_model, tensor_parallel_of
from llmkit.model.lora import add_adapters
from llmkit.parallel.collectives import all_gather
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.placement import placement
from llmkit.plan import Plan


def complete_model(engine: Engine, plan: Plan, mesh: Mesh) -> Model:
    """The model of an engine, or one with the same weights where its parameters are partitioned (ZeRO-3), its
    experts dealt out, or its activations are (sequence parallelism). All ranks call it together;
    tensor-parallel ranks keep their slices.

    Of partitioned parameters, and of experts, the other model has copies: memory for all weights, as without
    ZeRO and expert parallelism.
    """
    model = engine.model
    parameters = dict(model.named_parameters())
    partitioned = any(hasattr(each, "ds_id") for each in parameters.values())
    experts = mesh["expert"]
    if not partitioned and not plan.layout.sequence_parallel and experts.size == 1:
        return model
    tp, lora = tensor_parallel_of(plan.model, mesh, sequence_parallel=False), plan.config.train.lora
    # A registered model may have buffers that its constructor fills; the GPT's are all `full_buffers`.
    with torch.device("meta" if isinstance(plan.model, ModelShape) else mesh.device):
        form = plan.kernels.forms["linear"]
        other = build_model(plan.model, tp, Operators.of({"linear": form}) if form in QUANTISED else TORCH)
        if lora.rank:
            add_adapters(other, lora)
    if partitioned:
        engine.end_fetching()
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = _gathered(parameter) if partitioned else parameter.detach()
            if "expert" in placement(parameter).sharded:
                value = all_gather(value, 0, experts.group)
            _set(other, name, value)
    for name, buffer in model.full_buffers().items():
        path, _, own = name.rpartition(".")
        other.get_submodule(path).register_buffer(own, buffer.detach())
    for path, (weight, _) in model.quantised_weights().items():
        layer: Any = other.get_submodule(path)
        layer.weight = weight
    other.to(mesh.device)  # and with it other buffers
    other.has_weights = True
    return other.requires_grad_(False).eval()


def _set(model: Model, name: str, value: Tensor) -> None:
    """Makes `value` a parameter; one that is tied to others becomes it in all their places."""
    old = model.get_parameter(name)
    new = nn.Parameter(value, requires_grad=False)
    for module in model.modules():
        for own, parameter in module.named_parameters(recurse=False):
            if parameter is old:
                module.register_parameter(own, new)


def _gathered(parameter: nn.Parameter) -> Tensor:
    """A copy of a whole parameter that ZeRO-3 partitions. Collective."""
    from llmkit.engine.deepspeed import import_deepspeed

    with import_deepspeed().zero.GatheredParameters([parameter]):
        return parameter.data.clone()
