"""The output head and the loss as one call, so that forms that never hold all logits fit behind it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.batch import IGNORE, LossSum


def output_logits(hidden: Tensor, weight: Tensor, vocab_size: int) -> Tensor:
    """hidden: (..., hidden), weight: (padded_vocab, hidden) -> fp32 logits (..., padded_vocab).

    Padding gets -inf: it takes no probability, and no gradient reaches its rows.
    """
    logits = F.linear(hidden, weight).float()
    if weight.shape[0] > vocab_size:
        padding = torch.arange(weight.shape[0], device=logits.device) >= vocab_size
        logits = logits.masked_fill(padding, float("-inf"))
    return logits


def head_loss(hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int) -> LossSum:
    """Cross-entropy of softmax(hidden weight') summed over each row's targets, in fp32.

    hidden: (batch, seq, hidden); weight: (padded_vocab, hidden); labels: (batch, seq), IGNORE where
    a position is no target.
    """
    logits = output_logits(hidden, weight, vocab_size)
    nats = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    return LossSum(nats.view_as(labels).sum(-1), (labels != IGNORE).sum(-1))
