"""Parameter groups and the optimizers that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmkit.config.schema import Optimizer
from llmkit.optim.muon import Muon
from llmkit.parallel.spec import Part


def parameter_groups(parameters: Sequence[Tensor], weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay, norms and biases without."""
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    groups = ((matrices, weight_decay), (vectors, 0.0))
    return [{"params": members, "weight_decay": decay} for members, decay in groups if members]


def build_optimizers(
    masters: Mapping[str, Tensor], parts: Mapping[str, Sequence[Part]], config: Optimizer, bf16: bool
) -> list[torch.optim.Optimizer]:
    """The optimizers that together own all of `masters`, the fp32 parameters by their names.

    AdamW is fused: one pass over memory, and like Muon it can skip an update on the device.
    bf16: whether the device has units for it.
    """
    hidden = {
        n: p for n, p in masters.items() if config.name == "muon" and n.startswith("blocks.") and p.dim() == 2
    }
    rest = [p for name, p in masters.items() if name not in hidden]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            parameter_groups(rest, config.weight_decay),
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
    ]
    if hidden:
        matrices = [(p, [(part.start, part.stop) for part in parts[name]]) for name, p in hidden.items()]
        optimizers.append(
            Muon(
                matrices,
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                dtype=torch.bfloat16 if bf16 else torch.float32,
            )
        )
    return optimizers


def moments(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """Names of the tensors that an optimizer keeps for each parameter, beside the count of updates."""
    return ("momentum_buffer",) if isinstance(optimizer, Muon) else ("exp_avg", "exp_avg_sq")
