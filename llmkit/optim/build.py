"""Parameter groups and the optimizers that the configuration names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkit.config.groups import Group, assign
from llmkit.config.mistakes import listed
from llmkit.config.optimizer_section import Optimizer
from llmkit.config.parameters import FullTensor
from llmkit.errors import UserError
from llmkit.kernels.operators import TORCH, Operators
from llmkit.optim.base import Optimizer as Registered
from llmkit.optim.exchange import MatrixExchange, MatrixShard, shards_of
from llmkit.optim.muon import Muon
from llmkit.optim.schedule import StepValues
from llmkit.parallel.mesh import DIMENSIONS, Mesh
from llmkit.parallel.slices import Fragment, ParameterSlice, Shape
from llmkit.precision import Precision, torch_dtype
from llmkit.registry import find


def param_group(group: Group, tensors: Iterable[Tensor]) -> dict[str, Any]:
    """A group as PyTorch's optimizers take one, over the tensors that hold its parameters."""
    values = {"weight_decay": group.weight_decay, "betas": group.betas, "eps": group.eps}
    values |= {"lr": group.learning_rate, "momentum": group.momentum}
    return {"params": list(tensors), **values, "group": group}


def set_values(optimizers: Iterable[torch.optim.Optimizer], values: StepValues) -> None:
    """Sets what the next step of optimizers uses, whose groups `param_group` has made."""
    for optimizer in optimizers:
        for each in optimizer.param_groups:
            group: Group = each["group"]
            each["lr"] = group.learning_rate * values.learning_rate
            each["weight_decay"] = group.weight_decay * values.weight_decay
            each["momentum"] = group.momentum * values.momentum


class Held(NamedTuple):
    """An fp32 tensor that this rank updates, of parameters of one group.

    fragments: the elements that it holds; the others are padding.
    """

    group: Group
    tensor: Tensor
    fragments: Sequence[Fragment]

    def shards(self, parts: Mapping[str, Sequence[ParameterSlice]]) -> list[MatrixShard]:
        """The elements of full matrices that it holds."""
        return [
            shard
            for each in self.fragments
            for shard in shards_of(parts[each.parameter], each.start, each.start + each.numel, each.offset)
        ]


def groups_of(
    parts: Mapping[str, Sequence[ParameterSlice]], config: Optimizer, hidden_matrices: Collection[str]
) -> list[Group]:
    """Every parameter in its group (`llmkit.config.groups.assign`); the same on all ranks.

    hidden_matrices: parameters that Muon can update (`Model.hidden_matrices`). Sizes are read from the parts:
    under ZeRO-3 a parameter that is not in use has no shape.
    Raises UserError for a parameter whose full tensors are in several groups.
    """
    tensors = dict.fromkeys(
        FullTensor(part.name, part.shape, name in hidden_matrices, name)
        for name, each in parts.items()
        for part in each
    )
    groups = assign(list(tensors), config)
    number = {name: index for index, group in enumerate(groups) for name in group.names}
    stored: list[list[str]] = [[] for _ in groups]
    for name, each in parts.items():
        found = {number[part.name] for part in each}
        if len(found) > 1:
            what = f"{listed([part.name for part in each])} are one matrix in memory"
            raise UserError(f"optimizer.groups: {what}; match all of them or none")
        stored[found.pop()].append(name)
    return [replace(group, names=tuple(names)) for group, names in zip(groups, stored, strict=True)]


def build_simple(
    name: str,
    groups: Iterable[tuple[Group, Sequence[Tensor]]],
    config: Optimizer,
    operators: Operators = TORCH,
) -> torch.optim.Optimizer:
    """AdamW, or the registered optimizer `name`, over groups with the fp32 tensors of their parameters.

    Raises UserError where what is registered is no optimizer that llmkit can use.
    """
    described = [param_group(group, tensors) for group, tensors in groups]
    if (registered := find("optimizer", name)) is not None:
        make = registered.make
        if not (isinstance(make, type) and issubclass(make, Registered)):
            what = f"{registered.origin} is registered as an optimizer, but is no llmkit.Optimizer"
            raise UserError(f"{what}; make it a subclass")
        if make.update is Registered.update and make.step is Registered.step:
            raise UserError(f"{registered.origin} has no update(parameter, gradient, state, group)")
        return make(described, config)
    optimizer: torch.optim.Optimizer = operators.adamw(
        described, lr=config.learning_rate, betas=config.betas, eps=config.eps
    )
    return optimizer


def build_muon(
    groups: Iterable[tuple[Group, Sequence[Tensor]]],
    shards: Mapping[Tensor, Sequence[MatrixShard]],
    matrices: Mapping[str, Shape],
    mesh: Mesh,
    *,
    device: torch.device,
    precision: Precision,
    operators: Operators = TORCH,
) -> Muon:
    """Muon over groups with the fp32 tensors of their parameters. All ranks must call it together.

    shards: of each tensor. matrices: name -> shape of what the ranks together hold. device, precision: of
    the iteration.
    """
    described = [param_group(group, tensors) for group, tensors in groups]
    exchange = MatrixExchange(
        [shard for group in described for tensor in group["params"] for shard in shards[tensor]],
        matrices,
        mesh[DIMENSIONS],
        device=device,
        dtype=torch_dtype(precision.compute),
    )
    return Muon(described, shards, exchange, operators=operators)


def matrix_shapes(names: Iterable[str], parts: Mapping[str, Sequence[ParameterSlice]]) -> dict[str, Shape]:
    """Name -> shape of the full matrices in these parameters."""
    return {part.name: part.shape for name in names for part in parts[name]}


def build_optimizers(
    held: Sequence[Held],
    parts: Mapping[str, Sequence[ParameterSlice]],
    config: Optimizer,
    mesh: Mesh,
    *,
    device: torch.device,
    precision: Precision,
    operators: Operators = TORCH,
) -> list[torch.optim.Optimizer]:
    """The optimizers that together own the tensors that this rank holds. All ranks must call it together.

    device, precision: of products of matrices; the tensors are fp32 and may be on the host.
    """
    by_optimizer: dict[str, dict[Group, list[Tensor]]] = {}
    for each in held:
        groups = by_optimizer.setdefault(each.group.optimizer, {})
        groups.setdefault(each.group, []).append(each.tensor)
    optimizers: list[torch.optim.Optimizer] = []
    for name in sorted(by_optimizer, key=lambda name: name == "muon"):
        groups = by_optimizer[name]
        if name == "muon":
            shapes = matrix_shapes([name for group in groups for name in group.names], parts)
            shards = {each.tensor: each.shards(parts) for each in held if each.group in groups}
            muon = build_muon(
                groups.items(), shards, shapes, mesh,
                device=device, precision=precision, operators=operators,
            )  # fmt: skip
            optimizers.append(muon)
        else:
            optimizers.append(build_simple(name, groups.items(), config, operators))
    return optimizers


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the tensors that an optimizer keeps for each parameter, beside the count of updates."""
    if isinstance(optimizer, Registered):
        return optimizer.states
    return ("momentum_buffer",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
