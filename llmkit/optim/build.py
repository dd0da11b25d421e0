"""Parameter groups and the optimizers that the configuration names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from llmkit.config.schema import Optimizer
from llmkit.errors import UserError
from llmkit.kernels.operators import TORCH, Operators
from llmkit.optim.base import Optimizer as Registered
from llmkit.optim.exchange import MatrixExchange, MatrixShard, shards_of
from llmkit.optim.muon import Muon
from llmkit.parallel.mesh import DIMENSIONS, Mesh
from llmkit.parallel.slices import Fragment, ParameterSlice, Shape
from llmkit.precision import Precision, torch_dtype
from llmkit.registry import find


@dataclass(frozen=True)
class Group:
    """Parameters that one optimizer updates alike. names: in the model's order.

    optimizer: "adamw", "muon" or the name of a registered one.
    """

    optimizer: str
    weight_decay: float
    names: tuple[str, ...]


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
    """Every parameter in its group; the same on all ranks.

    Weight decay is for matrices, not for norms and biases; Muon, if asked for, for the hidden matrices
    (`Model.hidden_matrices`). What is a matrix is read from the parts: under ZeRO-3 a parameter that is not
    in use has no shape.
    """
    name = config.name if config.name not in ("adamw", "muon") else "adamw"
    dimensions = {name: len(parts[name][0].shape) for name in parts}
    hidden = [n for n in parts if config.name == "muon" and n in hidden_matrices]
    matrices = [name for name in parts if dimensions[name] >= 2 and name not in hidden]
    vectors = [name for name in parts if dimensions[name] < 2]
    groups = [
        Group(name, config.weight_decay, tuple(matrices)),
        Group(name, 0.0, tuple(vectors)),
        Group("muon", config.weight_decay, tuple(hidden)),
    ]
    return [group for group in groups if group.names]


def build_simple(
    name: str,
    groups: Iterable[tuple[Sequence[Tensor], float]],
    config: Optimizer,
    operators: Operators = TORCH,
) -> torch.optim.Optimizer:
    """AdamW, or the registered optimizer `name`, over (fp32 tensors, weight decay) groups.

    Raises UserError where what is registered is no optimizer that llmkit can use.
    """
    described = [{"params": list(tensors), "weight_decay": decay} for tensors, decay in groups]
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
    tensors: Sequence[tuple[Tensor, Sequence[MatrixShard]]],
    matrices: Mapping[str, Shape],
    config: Optimizer,
    mesh: Mesh,
    *,
    device: torch.device,
    precision: Precision,
    operators: Operators = TORCH,
) -> Muon:
    """Muon over fp32 tensors and their shards. All ranks of the mesh must call it together.

    matrices: name -> shape of what the ranks together hold. device, precision: of the iteration.
    """
    exchange = MatrixExchange(
        [shard for _, shards in tensors for shard in shards],
        matrices,
        mesh[DIMENSIONS],
        device=device,
        dtype=torch_dtype(precision.compute),
    )
    return Muon(
        tensors, exchange,
        lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay,
        operators=operators,
    )  # fmt: skip


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
    simple = [each for each in held if each.group.optimizer != "muon"]
    hidden = [each for each in held if each.group.optimizer == "muon"]
    optimizers = []
    if simple:
        decays = dict.fromkeys(each.group.weight_decay for each in simple)
        groups = [([each.tensor for each in simple if each.group.weight_decay == d], d) for d in decays]
        optimizers.append(build_simple(simple[0].group.optimizer, groups, config, operators))
    if hidden:
        shapes = matrix_shapes(hidden[0].group.names, parts)
        tensors = [(each.tensor, each.shards(parts)) for each in hidden]
        muon = build_muon(
            tensors, shapes, config, mesh, device=device, precision=precision, operators=operators
        )
        optimizers.append(muon)
    return optimizers


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the tensors that an optimizer keeps for each parameter, beside the count of updates."""
    if isinstance(optimizer, Registered):
        return optimizer.states
    return ("momentum_buffer",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
