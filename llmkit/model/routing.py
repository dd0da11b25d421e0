"""Where a router has sent tokens: what is counted in each forward pass, and the experts' capacity.

Everything stays on the device. Counts are sums over tokens, so that sums over micro-batches and ranks are
those of the global batch; rows without a target, of which there are more or fewer under other layouts, do not
count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llmkit.config.model_section import Moe

LOSSES = 2
"""Columns of a router's report that are losses: balance, z."""
TARGETS, BALANCE, Z, TOKENS, ENTROPY, DROPPED, LOADS = range(7)
"""Columns of `routing_sums`: targets; the balance loss and the z loss, each times the targets of its
sequence; tokens; entropy of the probabilities of the experts, nats, of all tokens together; choices that were
dropped; from LOADS on how often each expert was chosen, the dropped choices included."""


@torch.no_grad()
def count_choices(experts: Tensor, count: int) -> Tensor:
    """experts: (batch, seq, k) int64 -> (batch, count) fp32, how often each of `count` experts was chosen."""
    flat = experts.flatten(1)
    zeros = torch.zeros(len(flat), count, dtype=torch.float32, device=flat.device)
    return zeros.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32))


@torch.no_grad()
def entropies(probabilities: Tensor) -> Tensor:
    """probabilities: (batch, seq, experts) fp32 -> (batch, 1): entropies of all tokens of a row, nats."""
    return torch.special.entr(probabilities).sum((1, 2))[:, None]


def routing_sums(reports: Sequence[Tensor], targets: Tensor, own_targets: Tensor) -> Tensor:
    """(layers, LOADS + experts) fp32, see `TARGETS`, without a gradient.

    reports: of each router, (batch, LOSSES + 3 + experts): its losses, tokens, entropies, dropped choices,
    loads. targets: (batch,) of each row; own_targets: those in the piece of it that is here, where ranks
    share rows.
    """
    with torch.no_grad():
        found = torch.stack([report.detach() for report in reports])  # (layers, batch, ...)
        weighted = (found[..., :LOSSES] * targets[:, None]).sum(1)
        counted = found[..., LOSSES:].where((targets > 0)[:, None], 0.0).sum(1)
        total = own_targets.sum().to(found.dtype).expand(len(found), 1)
        return torch.cat((total, weighted, counted), 1)


def capacity(settings: Moe, length: int) -> int:
    """Choices of a sequence of `length` tokens that an expert takes; `settings.capacity_factor` is given."""
    factor, k = settings.capacity_factor, settings.num_experts_per_tok
    assert factor is not None
    # Rounded first: 1.1 x 10 x 2 / 2 is 11, not 12, though the product of the binary numbers is above 11.
    return math.ceil(round(factor * length * k / settings.num_experts, 6))


@torch.no_grad()
def within_capacity(experts: Tensor, count: int, most: int) -> Tensor:
    """(batch, seq, k) bool: the first `most` choices of each expert in a row, by token, then by choice.

    experts: (batch, seq, k) int64, of whole rows; count: experts that there are.
    """
    flat = experts.flatten(1)
    ordered, order = flat.sort(dim=1, stable=True)
    numbers = torch.arange(count, device=flat.device).expand(len(flat), -1).contiguous()
    starts = torch.searchsorted(ordered, numbers)
    place = torch.arange(flat.shape[1], device=flat.device) - starts.gather(1, ordered)
    return torch.empty_like(place).scatter_(1, order, place).view_as(experts) < most


@torch.no_grad()
def move_biases(biases: Sequence[Tensor], sums: Tensor, rate: float, skipped: Tensor) -> None:
    """Raises by `rate` the biases of experts with fewer tokens than the mean, lowers those with more.

    biases: (experts,) fp32 of each router. sums: of `routing_sums`, over the global batch, fp64. skipped: 1.0
    where the step changed nothing. Nothing waits for the device.
    """
    loads = sums[:, LOADS:]
    errors = loads.mean(1, keepdim=True) - loads
    moves = (errors.sign() * rate).where(skipped == 0.0, 0.0).float()
    torch._foreach_add_(list(biases), list(moves.unbind()))
