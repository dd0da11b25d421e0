"""The two values that cross every seam: what goes into the model, and what comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

IGNORE = -100
"""Label of a position that is no target: padding, or text the loss is masked on."""


class Batch(NamedTuple):
    """Some rows of tokens with their targets; all tensors lie on one device.

    tokens: (batch, seq) integers, the inputs.
    labels: (batch, seq) integers, `labels[b, t]` is the token that follows `tokens[b, t]`, or IGNORE.
        A loader gives int32, half the bytes on the way to the device; the model takes int64.
    documents: (batch, seq) int32 or None. Where given, a position attends only to positions of the
        same row with the same number; numbers never decrease along a row.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`, fit for the model; the copy does not wait if the memory is pinned."""
        tokens, labels = (each.to(device, non_blocking=True).long() for each in (self.tokens, self.labels))
        documents = self.documents
        return Batch(tokens, labels, None if documents is None else documents.to(device, non_blocking=True))


class LossSum(NamedTuple):
    """Summed loss of each row, never a mean: means of parts cannot be added, sums can.

    nats: (batch,) fp32, negative log-likelihood summed over the row's targets.
    targets: (batch,) int64, how many targets the row has.
    """

    nats: Tensor
    targets: Tensor


def cu_seqlens(documents: Tensor) -> tuple[Tensor, int]:
    """Where documents begin if a batch's rows are laid end to end, as kernels of variable length take it.

    documents: (batch, seq), as in `Batch`. Returns ((count + 1,) int32: 0, the later beginnings, batch * seq)
    and the length of the longest document. Waits for the device that `documents` is on.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    starts = begins.flatten().nonzero().flatten()
    bounds = torch.cat([starts, starts.new_tensor([documents.numel()])]).int()
    return bounds, int(bounds.diff().max())
