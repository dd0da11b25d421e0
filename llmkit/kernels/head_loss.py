"""The output head and the loss as one call, so that forms which never hold all logits fit behind it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.batch import IGNORE, LossSum
from llmkit.kernels.linear_products import column_linear
from llmkit.parallel.collectives import Group, all_reduce_max, reduce_from_group


class LossTerms(NamedTuple):
    """What is added to the cross-entropy, and how logits are bounded; 0 = nothing of it.

    softcap: logits z become softcap * tanh(z / softcap) (Gemma 2). z_loss: times log(sum exp(z))^2 is added
    for each target (PaLM). label_smoothing: this share of each target is spread evenly over the vocabulary
    (Szegedy et al. 2016).
    """

    softcap: float = 0.0
    z_loss: float = 0.0
    label_smoothing: float = 0.0


CROSS_ENTROPY = LossTerms()
"""Cross-entropy alone."""


def output_logits(hidden: Tensor, weight: Tensor, vocab_size: int, softcap: float = 0.0) -> Tensor:
    """hidden: (..., hidden), weight: (rows, hidden) -> (..., rows) fp32: logits, -inf from vocab_size on."""
    return bounded(F.linear(hidden, weight), vocab_size, 0, softcap)


def bounded(product: Tensor, vocab_size: int, first: int, softcap: float) -> Tensor:
    """The logits of tokens from `first` on, in fp32 and capped; product: (..., rows).

    Tokens from vocab_size on are padding: their logits are -inf, so they get no probability and no gradient.
    """
    logits = product.float()
    if softcap:
        logits = softcap * (logits / softcap).tanh()
    if first + logits.shape[-1] > vocab_size:
        padding = torch.arange(logits.shape[-1], device=logits.device) >= vocab_size - first
        logits = logits.masked_fill(padding, float("-inf"))
    return logits


def head_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    vocab_size: int,
    group: Group = None,
    first: int = 0,
    *,
    pieces: bool = False,
    terms: LossTerms = CROSS_ENTROPY,
    gradients: bool = True,
    compiled: bool = False,
) -> LossSum:
    """Cross-entropy of softmax(hidden weight') summed over the targets of each sequence, in fp32.

    hidden: (batch, seq, hidden); weight: (padded_vocab, hidden); labels: (batch, seq), IGNORE where
    a position is no target. With a group, each rank holds the rows of the weight of tokens first, first + 1,
    ...; the loss is the same on every rank, and the gradient of hidden is the sum over the ranks. pieces:
    hidden is this rank's piece of the sequence, (seq / ranks, batch, hidden), and so is its gradient.
    terms: `nats` is the cross-entropy whatever is added to it; what
    is added are the extras "z_loss" and "label_smoothing", sums over the batch. gradients: False where no
    backward pass will follow; a form may then return values without a gradient. compiled: whether a form
    may compile parts of its own. This form keeps all logits, and leaves both to its caller. `by_token` is
    known to all forms of llmkit; those of others may leave it out.
    """
    if group is None:
        product = F.linear(hidden, weight)
    else:
        product = column_linear(hidden, weight, None, group, pieces=pieces)
    logits = bounded(product, vocab_size, first, terms.softcap)
    labels, sequence = (labels.t(), 0) if pieces else (labels, -1)
    is_target = labels != IGNORE
    if group is None and not (terms.z_loss or terms.label_smoothing):
        flat = logits.flatten(0, 1)
        nats = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORE, reduction="none")
        nats = nats.view_as(labels)
        return LossSum(nats.sum(-1), is_target.sum(-1), by_token=nats.detach())
    log_sum, target = statistics(logits, labels - first, group)
    extras: dict[str, Tensor] = {}
    if terms.z_loss:
        extras["z_loss"] = terms.z_loss * log_sum.square().where(is_target, 0.0).sum()
    if terms.label_smoothing:
        all_logits = logits.where(logits > float("-inf"), 0.0).sum(-1)
        mean = reduce_from_group(all_logits, group) / vocab_size
        extras["label_smoothing"] = terms.label_smoothing * (target - mean).where(is_target, 0.0).sum()
    nats = infinite_outside(log_sum - target, labels, vocab_size).where(is_target, 0.0)
    by_token = nats.detach().t() if pieces else nats.detach()
    return LossSum(nats.sum(sequence), is_target.sum(sequence), extras, by_token=by_token)


def infinite_outside(nats: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """The loss of each label, infinite where it is no token, since no rank has a column for it."""
    return nats.masked_fill((labels < 0) | (labels >= vocab_size), float("inf"))


def statistics(logits: Tensor, column: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """log(sum exp(logits)) and logits[column] over the tokens of all ranks, each (batch, seq) fp32.

    logits: (batch, seq, rows), those of this rank's tokens; column: (batch, seq), may be another rank's or
    no token's. For each position the ranks exchange three numbers: the largest logit, the sum of
    exponentials and the target's logit, which is found by comparison, so that its gradient is computed
    where the exponentials' is.
    """
    largest = all_reduce_max(logits.detach().amax(-1), group)
    hit = torch.arange(logits.shape[-1], device=logits.device) == column[..., None]
    target = logits.where(hit, 0.0).sum(-1)
    sums = torch.stack(((logits - largest[..., None]).exp().sum(-1), target))
    total, target = reduce_from_group(sums, group)
    return total.log() + largest, target
