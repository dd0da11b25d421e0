"""Parameter groups and the optimizers that the configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmkit.config.schema import Optimizer
from llmkit.optim.exchange import MatrixExchange, Shard, shards_of
from llmkit.optim.muon import Muon
from llmkit.parallel.mesh import Mesh
from llmkit.parallel.slices import ParameterSlice, Shape


@dataclass(frozen=True)
class Group:
    """Parameters that one optimizer updates alike. names: in the model's order."""

    optimizer: Literal["adamw", "muon"]
    weight_decay: float
    names: tuple[str, ...]


def groups_of(parts: Mapping[str, Sequence[ParameterSlice]], config: Optimizer) -> list[Group]:
    """Every parameter in its group; the same on all ranks.

    Weight decay is for matrices, not for norms and biases; Muon, if asked for, for the blocks' matrices.
    What is a matrix is read from the parts: under ZeRO-3 a parameter that is not in use has no shape.
    """
    dimensions = {name: len(parts[name][0].shape) for name in parts}
    hidden = [n for n in parts if config.name == "muon" and n.startswith("blocks.") and dimensions[n] == 2]
    matrices = [name for name in parts if dimensions[name] >= 2 and name not in hidden]
    vectors = [name for name in parts if dimensions[name] < 2]
    groups = [
        Group("adamw", config.weight_decay, tuple(matrices)),
        Group("adamw", 0.0, tuple(vectors)),
        Group("muon", config.weight_decay, tuple(hidden)),
    ]
    return [group for group in groups if group.names]


def build_adamw(groups: Iterable[tuple[Sequence[Tensor], float]], config: Optimizer) -> torch.optim.AdamW:
    """AdamW over (fp32 tensors, weight decay) groups.

    Fused: one pass over memory, and an update can be skipped on the device.
    """
    return torch.optim.AdamW(
        [{"params": list(tensors), "weight_decay": decay} for tensors, decay in groups],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def build_muon(
    tensors: Sequence[tuple[Tensor, Sequence[Shard]]],
    matrices: Mapping[str, Shape],
    config: Optimizer,
    mesh: Mesh,
    *,
    device: torch.device,
    bf16: bool,
) -> Muon:
    """Muon over fp32 tensors and their shards. All ranks of the mesh must call it together.

    matrices: name -> shape of what the ranks together hold. device, bf16: of the iteration; bf16 where there
    are units for it.
    """
    exchange = MatrixExchange(
        [shard for _, shards in tensors for shard in shards],
        matrices,
        device=device,
        dtype=torch.bfloat16 if bf16 else torch.float32,
        rank=mesh.rank,
        size=mesh.world_size,
    )
    return Muon(
        tensors, exchange,
        lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay,
    )  # fmt: skip


def matrix_shapes(names: Iterable[str], parts: Mapping[str, Sequence[ParameterSlice]]) -> dict[str, Shape]:
    """Name -> shape of the full matrices in these parameters."""
    return {part.name: part.shape for name in names for part in parts[name]}


def build_optimizers(
    masters: Mapping[str, Tensor],
    parts: Mapping[str, Sequence[ParameterSlice]],
    config: Optimizer,
    bf16: bool,
) -> list[torch.optim.Optimizer]:
    """The optimizers that together own all of `masters`, the fp32 parameters by their names.

    bf16: whether the device has units for it.
    """
    groups = groups_of(parts, config)
    elementwise = [group for group in groups if group.optimizer == "adamw"]
    pairs = [([masters[name] for name in group.names], group.weight_decay) for group in elementwise]
    optimizers: list[torch.optim.Optimizer] = [build_adamw(pairs, config)]
    for group in groups:
        if group.optimizer == "muon":
            named = [(name, masters[name]) for name in group.names]
            held = [(master, list(shards_of(parts[name], 0, master.numel()))) for name, master in named]
            shapes, device = matrix_shapes(group.names, parts), held[0][0].device
            optimizers.append(build_muon(held, shapes, config, Mesh(), device=device, bf16=bf16))
    return optimizers


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the tensors that an optimizer keeps for each parameter, beside the count of updates."""
    return ("momentum_buffer",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
