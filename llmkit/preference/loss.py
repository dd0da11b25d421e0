"""The loss of pairs: how much more likely the chosen answer is than under the reference model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkit.batch import Batch, LossSum
from llmkit.config.preference_section import Dpo

CHOSEN, REJECTED, ACCURACY, MARGIN = MEASURES = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracy", "rewards/margin",
)  # fmt: skip
"""Means over pairs. The reward of an answer is beta log(p / p_reference) (Rafailov et al. 2023, section 4);
accuracy: the share of pairs whose chosen answer has the larger one; margin: chosen less rejected."""


class DpoLoss:
    """Makes the loss of pairs of the log-probabilities that a model gives their sequences.

    Is called with the loss of a batch and the batch itself, whose rows are pairs (see `Batch.reference`).
    Returns one row a pair: `nats` is its loss and `targets` 1, or 0 and 0 for a pair that only fills; the
    model's `extras`, and the sums of `MEASURES` over the pairs. So sums over micro-batches and ranks are
    exact, and a step is divided by its number of pairs.
    """

    def __init__(self, settings: Dpo) -> None:
        self.settings = settings

    def __call__(self, loss: LossSum, batch: Batch) -> LossSum:
        assert batch.reference is not None, "pairs without the reference's log-probabilities"
        targets = loss.targets.view(-1, 2)
        is_pair = targets.amin(1) > 0
        log_ratio = -loss.nats.view(-1, 2) - batch.reference  # log(p / p_reference) of each answer
        losses = self._losses(log_ratio, targets)
        if weight := self.settings.nll_weight:
            losses = losses + weight * loss.nats.view(-1, 2)[:, 0] / targets[:, 0].clamp(min=1)
        losses = losses.where(is_pair, 0.0)
        rewards = (self.settings.beta * log_ratio.detach()).where(is_pair[:, None], 0.0)
        chosen, rejected = rewards.unbind(1)
        values = (chosen, rejected, (chosen > rejected).float(), chosen - rejected)
        measures = {name: value.sum() for name, value in zip(MEASURES, values, strict=True)}
        return LossSum(losses, is_pair.long(), {**loss.extras, **measures}, routing=loss.routing)

    def _losses(self, log_ratio: Tensor, targets: Tensor) -> Tensor:
        """(pairs,) fp32. log_ratio, targets: (pairs, 2)."""
        beta, smoothing = self.settings.beta, self.settings.label_smoothing
        if self.settings.loss == "ipo":  # a token, or long answers would count for more than short ones
            log_ratio = log_ratio / targets.clamp(min=1)
        margin = log_ratio[:, 0] - log_ratio[:, 1]
        if self.settings.loss == "ipo":
            return (margin - 1.0 / (2.0 * beta)).square()
        if self.settings.loss == "hinge":
            return torch.relu(1.0 - beta * margin)
        losses = -(1.0 - smoothing) * F.logsigmoid(beta * margin)
        return losses - smoothing * F.logsigmoid(-beta * margin) if smoothing else losses
