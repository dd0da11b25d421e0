"""The output head and the loss as one call, so that kernels which never hold all logits fit behind it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.batch import IGNORE, LossSum
from llmkit.parallel.collectives import Group, all_reduce_max, reduce_from_group


def output_logits(hidden: Tensor, weight: Tensor, vocab_size: int, first: int = 0) -> Tensor:
    """hidden: (..., hidden), weight: (rows, hidden) -> (..., rows) fp32: logits of tokens from `first` on.

    Tokens from vocab_size on are padding: their logits are -inf, so they get no probability and no gradient.
    """
    logits = F.linear(hidden, weight).float()
    if first + weight.shape[0] > vocab_size:
        padding = torch.arange(weight.shape[0], device=logits.device) >= vocab_size - first
        logits = logits.masked_fill(padding, float("-inf"))
    return logits


def head_loss(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, group: Group = None, first: int = 0
) -> LossSum:
    """Cross-entropy of softmax(hidden weight') summed over the targets of each sequence, in fp32.

    hidden: (batch, seq, hidden); weight: (padded_vocab, hidden); labels: (batch, seq), IGNORE where
    a position is no target. With a group, each rank holds the rows of the weight of tokens first, first + 1,
    ...; the loss is the same on every rank.
    """
    logits = output_logits(hidden, weight, vocab_size, first)
    if group is None:
        flat = logits.flatten(0, 1)
        nats = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="none")
    else:
        nats = _sharded_cross_entropy(logits, labels, first, group)
    return LossSum(nats.view_as(labels).sum(-1), (labels != IGNORE).sum(-1))


def _sharded_cross_entropy(logits: Tensor, labels: Tensor, first: int, group: Group) -> Tensor:
    """log(sum exp(logits)) - logits[label] over the tokens of all ranks, (batch, seq) fp32; 0 at IGNORE.

    logits: (batch, seq, rows), those of this rank's tokens. For each position the ranks exchange three
    numbers: the largest logit, the sum of exponentials and the target's logit.
    """
    largest = all_reduce_max(logits.detach().amax(-1), group)
    column = labels - first
    on_other_rank = (column < 0) | (column >= logits.shape[-1])
    shifted = logits - largest[..., None]
    target = shifted.gather(-1, column.masked_fill(on_other_rank, 0)[..., None]).squeeze(-1)
    sums = torch.stack((shifted.exp().sum(-1), target.masked_fill(on_other_rank, 0.0)))
    total, target = reduce_from_group(sums, group)
    return (total.log() - target).masked_fill(labels == IGNORE, 0.0)
