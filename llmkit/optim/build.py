"""Parameter groups and the optimizers that the configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from llmkit.config.schema import Optimizer
from llmkit.optim.exchange import MatrixExchange, Shard, shards_of
from llmkit.optim.muon import Muon
from llmkit.parallel.slices import ParameterSlice, Shape


def build_adamw(
    parameters: Mapping[str, Tensor], parts: Mapping[str, Sequence[ParameterSlice]], config: Optimizer
) -> torch.optim.AdamW:
    """AdamW over the named parameters; weight decay on matrices, not on norms and biases.

    Fused: one pass over memory, and an update can be skipped on the device. What is a matrix is told by
    the parts: under ZeRO-3 a parameter that is not in use has no shape of its own.
    """
    matrices = [p for name, p in parameters.items() if len(parts[name][0].shape) >= 2]
    vectors = [p for name, p in parameters.items() if len(parts[name][0].shape) < 2]
    groups = ((matrices, config.weight_decay), (vectors, 0.0))
    return torch.optim.AdamW(
        [{"params": members, "weight_decay": decay} for members, decay in groups if members],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def is_hidden_matrix(name: str, parts: Mapping[str, Sequence[ParameterSlice]]) -> bool:
    """Whether Muon updates this parameter. Read from its parts: under ZeRO-3 it has no shape of its own."""
    return name.startswith("blocks.") and all(len(part.shape) == 2 for part in parts[name])


def build_optimizers(
    masters: Mapping[str, Tensor],
    parts: Mapping[str, Sequence[ParameterSlice]],
    config: Optimizer,
    bf16: bool,
) -> list[torch.optim.Optimizer]:
    """The optimizers that together own all of `masters`, the fp32 parameters by their names.

    bf16: whether the device has units for it.
    """
    muon = config.name == "muon"
    hidden = {n: p for n, p in masters.items() if muon and is_hidden_matrix(n, parts)}
    rest = {name: p for name, p in masters.items() if name not in hidden}
    optimizers: list[torch.optim.Optimizer] = [build_adamw(rest, parts, config)]
    if hidden:
        tensors = [(p, list(shards_of(parts[name], 0, p.numel()))) for name, p in hidden.items()]
        device, dtype = tensors[0][0].device, torch.bfloat16 if bf16 else torch.float32
        exchange = MatrixExchange(all_shards(tensors), matrices(hidden, parts), device=device, dtype=dtype)
        optimizers.append(build_muon(tensors, exchange, config))
    return optimizers


def all_shards(tensors: Sequence[tuple[Tensor, Sequence[Shard]]]) -> list[Shard]:
    """The shards of all tensors, in their order."""
    return [shard for _, shards in tensors for shard in shards]


def matrices(names: Iterable[str], parts: Mapping[str, Sequence[ParameterSlice]]) -> dict[str, Shape]:
    """Name -> shape of the full matrices in these parameters; the same on all ranks."""
    return {part.name: part.shape for name in names for part in parts[name]}


def build_muon(
    tensors: Sequence[tuple[Tensor, Sequence[Shard]]], exchange: MatrixExchange, config: Optimizer
) -> Muon:
    """Muon over fp32 tensors and their shards, all of which the exchange knows."""
    return Muon(
        tensors,
        exchange,
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the tensors that an optimizer keeps for each parameter, beside the count of updates."""
    return ("momentum_buffer",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
