"""Loss of the targets alone, and whether each is the likeliest token: to score answers, without gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.batch import IGNORE, LossSum
from llmkit.kernels.head_loss import bounded, infinite_outside, statistics
from llmkit.parallel.collectives import Group, all_gather, all_reduce_max

CHUNK = 1024
"""Targets whose logits are held at once: 0.5 GB in fp32 for a vocabulary of 128 thousand."""


@torch.no_grad()
def score_targets(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_size: int,
    group: Group = None,
    first: int = 0,
    *,
    pieces: bool = False,
    softcap: float = 0.0,
) -> LossSum:
    """Cross-entropy of each row's targets in fp32, with `LossSum.likeliest`; arguments as of `head_loss`.

    labels: (batch * n, seq): n rows of labels, one behind the other, for each row of `hidden`. Logits are
    computed where there are targets only. Of equal logits the smallest id is the likeliest. Waits for the
    device, to count the targets.
    """
    if pieces:
        hidden = all_gather(hidden, 0, group).transpose(0, 1)
    is_target = labels != IGNORE
    nats, hits = torch.zeros(labels.shape, device=labels.device), torch.zeros_like(is_target)
    wanted, (row, column) = labels[is_target], is_target.nonzero(as_tuple=True)
    row = row // (len(labels) // len(hidden))
    parts = [
        _scores(hidden[r, c], weight, w, vocab_size, group, first, softcap)
        for r, c, w in zip(row.split(CHUNK), column.split(CHUNK), wanted.split(CHUNK), strict=True)
    ]
    nats[is_target] = torch.cat([part[0] for part in parts])
    hits[is_target] = torch.cat([part[1] for part in parts])
    return LossSum(nats.sum(-1), is_target.sum(-1), likeliest=hits.sum(-1))


def _scores(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, group: Group, first: int, softcap: float
) -> tuple[Tensor, Tensor]:
    """hidden: (targets, hidden), labels: (targets,) -> nats and whether it is the likeliest, (targets,)."""
    logits = bounded(F.linear(hidden, weight), vocab_size, first, softcap)
    log_sum, target = statistics(logits, labels - first, group)
    largest, column = logits.max(-1)
    # The id of the largest logit over all ranks, found as the largest of the negated ids.
    is_mine = largest == all_reduce_max(largest, group)
    likeliest = -all_reduce_max(torch.where(is_mine, -(column + first), -vocab_size), group)
    return infinite_outside(log_sum - target, labels, vocab_size), likeliest == labels
