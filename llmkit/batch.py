"""The input and the output of every model: `Batch` and `LossSum`; and `Rows`, a batch on the host."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Label of a position that is no target: padding, or text the loss is masked on."""


class Batch(NamedTuple):
    """Some rows of tokens with their targets; all tensors lie on one device.

    tokens: (batch, seq) int64, the inputs.
    labels: (batch, seq) int64, `labels[b, t]` is the token that follows `tokens[b, t]`, or IGNORE. Where
        answers are scored (`Engine.score`), a GPT takes (batch * n, seq): n rows for each row of tokens.
    documents: (batch, seq) int32 or None. Where given, a position attends only to positions of the
        same row with the same number; numbers never decrease along a row.
    bounds: the same as `document_bounds` gives it, int32, or None: not known on the host.
    reference: of pairs, (batch / 2, 2) fp32: the log-probabilities of both sequences under the reference
        model. Rows 2 k and 2 k + 1 are then the chosen and the rejected sequence of pair k.
    sources: (batch, sources) bool, or (batch / 2, sources) of pairs: which data source each row is of, none
        for a row that only fills; None: there is one source, or nobody asks.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None = None
    bounds: Tensor | None = None
    reference: Tensor | None = None
    sources: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; the copy does not wait if the memory is pinned."""
        tokens, labels = (each.to(device, non_blocking=True) for each in self[:2])
        masks = (None if each is None else each.to(device, non_blocking=True) for each in self[2:])
        return Batch(tokens, labels, *masks)


class Rows(NamedTuple):
    """A batch on the host as int32 token ids; `to` shifts and widens it on the device.

    tokens: (batch, seq + 1) int32: inputs and, one position further, labels.
    is_target: (batch, seq) bool, which labels are targets; None = all.
    end_of_text: its id where documents are masked from each other: as an input it opens the next one. None
        where a position attends to all before it.
    bounds: of the documents, as `document_bounds` gives it; `of` computes it.
    reference, sources: as in `Batch`.
    """

    tokens: Tensor
    is_target: Tensor | None = None
    end_of_text: int | None = None
    bounds: Tensor | None = None
    reference: Tensor | None = None
    sources: Tensor | None = None

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        is_target: Tensor | None,
        end_of_text: int | None,
        reference: Tensor | None = None,
        sources: Tensor | None = None,
    ) -> Rows:
        """Rows with the bounds of their documents, which lie in pinned memory where the tokens do."""
        bounds = None if end_of_text is None else document_bounds(tokens[:, :-1] == end_of_text)
        if bounds is not None and tokens.is_pinned():
            bounds = bounds.pin_memory()
        return cls(tokens, is_target, end_of_text, bounds, reference, sources)

    def pinned_for(self, device: torch.device) -> Rows:
        """The same rows; for a GPU in page-locked memory, which it reads while the host goes on."""
        if device.type != "cuda":
            return self
        given = (self.tokens, self.is_target, self.bounds, self.reference, self.sources)
        tokens, *others = (None if each is None else each.pin_memory() for each in given)
        assert tokens is not None
        is_target, bounds, reference, sources = others
        return Rows(tokens, is_target, self.end_of_text, bounds, reference, sources)

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, made there; nothing waits for the copy if the memory is pinned."""
        row = self.tokens.to(device, non_blocking=True)
        tokens, labels = row[:, :-1].long(), row[:, 1:].long()
        if self.is_target is not None:
            labels = labels.masked_fill(~self.is_target.to(device, non_blocking=True), IGNORE)
        documents = None
        if self.end_of_text is not None:
            documents = (tokens == self.end_of_text).cumsum(1, dtype=torch.int32)
        others = (
            None if each is None else each.to(device, non_blocking=True)
            for each in (self.bounds, self.reference, self.sources)
        )
        return Batch(tokens, labels, documents, *others)


def split_pairs(rows: Tensor, labels: int = 1) -> Tensor:
    """The sequences of pairs, (2 * pairs, L + labels), in the same kind of memory.

    rows: (pairs, 2 L + labels), of which a pair's sequences overlap by `labels` tokens: 1 where the last
    token of one is the first input of the next, 0 for what is given for each label.
    """
    length = (rows.shape[1] - labels) // 2
    parts = rows.unfold(1, length + labels, length)
    shape = (2 * len(rows), length + labels)
    return torch.empty(shape, dtype=rows.dtype, pin_memory=rows.is_pinned()).copy_(parts.reshape(shape))


class LossSum(NamedTuple):
    """Summed loss of each row, never a mean: means of parts cannot be added, sums can.

    nats: (batch,) fp32, negative log-likelihood summed over the row's targets.
    targets: (batch,) int64, how many targets the row has.
    extras: further sums over the batch by name, scalars on the device, such as a balance loss or a count.
        One that requires a gradient is added to what is minimised. The names must be the same on all ranks
        and in all batches of a run; each is recorded as a mean over targets, as the loss is. Tensor-parallel
        ranks must have the same value: a sum over sharded activations needs `layers.reduce_from_group`.
    likeliest: (batch,) int64, how many of the row's targets are the token that the model finds likeliest;
        None = not counted. Needed only to score answers, in `Engine.score`.
    by_token: (batch, seq) fp32, what each label adds to `nats`, 0 where it is no target, without a gradient;
        None = not known. Needed only for the loss by position.
    """

    nats: Tensor
    targets: Tensor
    extras: Mapping[str, Tensor] = MappingProxyType({})
    likeliest: Tensor | None = None
    by_token: Tensor | None = None

    @classmethod
    def of_logits(cls, logits: Tensor, labels: Tensor) -> LossSum:
        """Cross-entropy in fp32. logits: (batch, seq, vocab); labels: (batch, seq), as in `Batch`.

        Where gradients are off, `likeliest` is counted, too.
        """
        flat, wanted = logits.flatten(0, 1).float(), labels.flatten()
        nats = F.cross_entropy(flat, wanted, ignore_index=IGNORE, reduction="none").view_as(labels)
        loss = cls(nats.sum(-1), (labels != IGNORE).sum(-1), by_token=nats.detach())
        if torch.is_grad_enabled():
            return loss
        return loss._replace(likeliest=(logits.argmax(-1) == labels).sum(-1))

    @property
    def objective(self) -> Tensor:
        """What is minimised, a scalar: all nats, and those extras that require a gradient."""
        return sum((extra for extra in self.extras.values() if extra.requires_grad), self.nats.sum())


def document_bounds(begins: Tensor) -> Tensor:
    """Where documents begin if rows are laid end to end, as kernels of variable length take it.

    begins: (batch, seq) bool on the host, which positions open a document; the first of a row always does.
    Returns int32: 0, the later beginnings, and batch * seq so often that the length is a power of two: few
    shapes occur.
    """
    begins = begins.clone()
    begins[:, 0] = True
    starts = begins.flatten().nonzero().flatten()
    size = max(16, 1 << starts.numel().bit_length())
    bounds = torch.full((size,), begins.numel(), dtype=torch.int32)
    bounds[: starts.numel()] = starts
    return bounds
