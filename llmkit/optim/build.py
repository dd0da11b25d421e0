"""Parameter groups and the optimizers that the configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from llmkit.config.schema import Optimizer
from llmkit.optim.muon import Muon
from llmkit.parallel.spec import Part


def build_adamw(
    parameters: Mapping[str, Tensor], parts: Mapping[str, Sequence[Part]], config: Optimizer
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


def build_optimizers(
    masters: Mapping[str, Tensor], parts: Mapping[str, Sequence[Part]], config: Optimizer, bf16: bool
) -> list[torch.optim.Optimizer]:
    """The optimizers that together own all of `masters`, the fp32 parameters by their names.

    bf16: whether the device has units for it.
    """
    hidden = {
        n: p for n, p in masters.items() if config.name == "muon" and n.startswith("blocks.") and p.dim() == 2
    }
    rest = {name: p for name, p in masters.items() if name not in hidden}
    optimizers: list[torch.optim.Optimizer] = [build_adamw(rest, parts, config)]
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
