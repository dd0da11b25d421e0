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


Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of the positions of a row."""


class RowPiece(NamedTuple):
    """Which part of its rows a batch is, where several ranks share them (context parallelism).

    ranges: the positions that its tokens have in the rows, in their order. length: tokens of a row.
    documents: (batch, length) int32, as `Batch.documents`, of all of the rows; None where documents are not
    masked. has_target: (batch,) bool, which rows have a target anywhere; None = all.
    """

    ranges: Ranges
    length: int
    documents: Tensor | None = None
    has_target: Tensor | None = None

    def to(self, device: torch.device) -> RowPiece:
        """The same on `device`; the copy does not wait if the memory is pinned."""
        documents, has_target = (
            None if each is None else each.to(device, non_blocking=True)
            for each in (self.documents, self.has_target)
        )
        return RowPiece(self.ranges, self.length, documents, has_target)


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
    piece: which part of the rows this is, of which tokens, labels and documents then are alone; None: all.
    """

    tokens: Tensor
    labels: Tensor
    documents: Tensor | None = None
    bounds: Tensor | None = None
    reference: Tensor | None = None
    sources: Tensor | None = None
    piece: RowPiece | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; the copy does not wait if the memory is pinned."""
        tokens, labels = (each.to(device, non_blocking=True) for each in self[:2])
        documents, bounds, reference, sources = (
            None if each is None else each.to(device, non_blocking=True)
            for each in (self.documents, self.bounds, self.reference, self.sources)
        )
        piece = None if self.piece is None else self.piece.to(device)
        return Batch(tokens, labels, documents, bounds, reference, sources, piece)

    @property
    def row_length(self) -> int:
        """Tokens of a row, all of them."""
        return self.tokens.shape[1] if self.piece is None else self.piece.length

    def cut(self, ranges: Ranges | None) -> Batch:
        """The same rows at some positions alone; all of them for None."""
        if ranges is None:
            return self
        documents = None if self.documents is None else pick(self.documents, ranges)
        has_target = (self.labels != IGNORE).any(1)
        return self._replace(
            tokens=pick(self.tokens, ranges), labels=pick(self.labels, ranges), documents=documents,
            piece=RowPiece(ranges, self.tokens.shape[1], self.documents, has_target),
        )  # fmt: skip


def pick(x: Tensor, ranges: Ranges) -> Tensor:
    """x (batch, seq, ...) at the positions of some ranges; a view where that is one range."""
    parts = [x[:, start:stop] for start, stop in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


class Rows(NamedTuple):
    """A batch on the host as int32 token ids; `to` shifts and widens it on the device.

    tokens: (batch, seq + 1) int32: inputs and, one position further, labels. Of a piece (`cut`) the same of
        each of its ranges, behind each other.
    is_target: (batch, seq) bool, which labels are targets; None = all.
    end_of_text: its id where documents are masked from each other: as an input it opens the next one. None
        where a position attends to all before it.
    bounds: of the documents, as `document_bounds` gives it; `of` computes it.
    reference, sources, piece: as in `Batch`; the documents of a piece are made of `bounds` on the device.
    """

    tokens: Tensor
    is_target: Tensor | None = None
    end_of_text: int | None = None
    bounds: Tensor | None = None
    reference: Tensor | None = None
    sources: Tensor | None = None
    piece: RowPiece | None = None

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
        piece = self.piece
        if piece is not None and piece.has_target is not None:
            piece = piece._replace(has_target=piece.has_target.pin_memory())
        return Rows(tokens, is_target, self.end_of_text, bounds, reference, sources, piece)

    def cut(self, ranges: Ranges | None) -> Rows:
        """The same rows at some positions alone, in the same kind of memory; all of them for None.

        Their bounds are computed if they are not known: a piece alone does not tell where documents begin.
        """
        if ranges is None:
            return self
        if self.bounds is None and self.end_of_text is not None:
            known = Rows.of(self.tokens, self.is_target, self.end_of_text, self.reference, self.sources)
            return known.cut(ranges)
        pinned, length = self.tokens.is_pinned(), self.tokens.shape[1] - 1
        tokens, is_target, has_target = pick(self.tokens, _with_label(ranges)), self.is_target, None
        if is_target is not None:
            has_target, is_target = is_target.any(1), pick(is_target, ranges)
        if pinned:
            tokens = _pinned(tokens)
            is_target, has_target = (
                None if each is None else _pinned(each) for each in (is_target, has_target)
            )
        return self._replace(
            tokens=tokens, is_target=is_target, piece=RowPiece(ranges, length, has_target=has_target)
        )

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, made there; nothing waits for the copy if the memory is pinned."""
        row = self.tokens.to(device, non_blocking=True)
        inputs, targets = _inputs_and_labels(row, self.piece)
        tokens, labels = inputs.long(), targets.long()
        if self.is_target is not None:
            labels = labels.masked_fill(~self.is_target.to(device, non_blocking=True), IGNORE)
        bounds, reference, sources = (
            None if each is None else each.to(device, non_blocking=True)
            for each in (self.bounds, self.reference, self.sources)
        )
        documents, piece = None, None if self.piece is None else self.piece.to(device)
        if piece is not None and bounds is not None:
            whole = documents_of(bounds, len(tokens), piece.length)
            documents, piece = pick(whole, piece.ranges), piece._replace(documents=whole)
        elif self.end_of_text is not None:
            documents = (tokens == self.end_of_text).cumsum(1, dtype=torch.int32)
        return Batch(tokens, labels, documents, bounds, reference, sources, piece)


def _pinned(x: Tensor) -> Tensor:
    """x in page-locked memory, without gaps: what has some would be copied to pageable memory on its way."""
    if x.is_pinned() and x.is_contiguous():
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x)


def _with_label(ranges: Ranges) -> Ranges:
    """The ranges of inputs and, one position further, their labels."""
    return tuple((start, stop + 1) for start, stop in ranges)


def _inputs_and_labels(row: Tensor, piece: RowPiece | None) -> tuple[Tensor, Tensor]:
    """`Rows.tokens` -> inputs and labels, (batch, seq) each."""
    if piece is None or len(piece.ranges) == 1:
        return row[:, :-1], row[:, 1:]
    parts = row.split([stop - start for start, stop in _with_label(piece.ranges)], 1)
    return torch.cat([part[:, :-1] for part in parts], 1), torch.cat([part[:, 1:] for part in parts], 1)


def documents_of(bounds: Tensor, rows: int, length: int) -> Tensor:
    """The numbers of documents, (rows, length) int32, of what `document_bounds` gives."""
    place = torch.arange(rows * length, dtype=bounds.dtype, device=bounds.device)
    return torch.searchsorted(bounds, place, right=True, out_int32=True).view(rows, length)


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
    routing: (layers with experts, columns) fp32, sums over the batch of where tokens were sent, see
        `llmkit.kernels.routing`; None: there are no experts, or nothing is learned from the batch.
    by_token: (batch, seq) fp32, what each label adds to `nats`, 0 where it is no target, without a gradient;
        None = not known. Needed only for the loss by position.
    """

    nats: Tensor
    targets: Tensor
    extras: Mapping[str, Tensor] = MappingProxyType({})
    likeliest: Tensor | None = None
    by_token: Tensor | None = None
    routing: Tensor | None = None

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
