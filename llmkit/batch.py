"""The two values that cross every seam: what goes into the model, and what comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""Label of a position that is no target: padding, or text the loss is masked on."""


class Batch(NamedTuple):
    """Some rows of tokens with their targets; all tensors lie on one device.

    tokens: (batch, seq) int64, the inputs.
    labels: (batch, seq) int64, `labels[b, t]` is the token that follows `tokens[b, t]`, or IGNORE.
    documents: (batch, seq) int32 or None. Where given, a position attends only to positions of the
        same row with the same number; numbers never decrease along a row.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; the copy does not wait if the memory is pinned."""
        documents = self.documents
        if documents is not None:
            documents = documents.to(device, non_blocking=True)
        return Batch(
            self.tokens.to(device, non_blocking=True), self.labels.to(device, non_blocking=True), documents
        )


class LossSum(NamedTuple):
    """Summed loss of each row, never a mean: means of parts cannot be added, sums can.

    nats: (batch,) fp32, negative log-likelihood summed over the row's targets.
    targets: (batch,) int64, how many targets the row has.
    """

    nats: Tensor
    targets: Tensor
