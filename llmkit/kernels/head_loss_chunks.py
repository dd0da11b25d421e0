"""Linear + cross-entropy that never holds all logits in fp32, and most often not all of them.

Each row of logits is read once, between the matrix product that makes it and those that use its gradient,
which takes its place. Two ways, chosen by size alone:

- *kept*: the gradients of all logits fit into `BUFFER_BYTES`. The backward pass multiplies them with the
  weight and with the hidden states, times the gradient of each row's loss.
- *in chunks* of tokens through one buffer: the gradients of hidden states and weight are computed in the
  forward pass, for a gradient of 1 of each row's loss, and the backward pass multiplies them with the real
  one. Where that is not known to be the same for all rows, the backward pass computes them anew, exact for
  any: 6 matrix products instead of 3.

The gradient of the weight is summed in fp32. Where ranks have parts of the vocabulary, the sum over them of
the hidden states' gradient is on its way while the last product for the weight's is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from llmkit.batch import IGNORE, LossSum
from llmkit.kernels.head_loss import CROSS_ENTROPY, LossTerms, infinite_outside
from llmkit.kernels.head_loss_ranks import Ranks
from llmkit.kernels.head_loss_rows import RowPass, RowSpec, row_pass
from llmkit.parallel.collectives import Group, start_all_gather, wait

BUFFER_BYTES = 2**28
"""What the logits of a chunk may take in any case: it is little on any device."""
BUFFER_SHARE = 0.08
"""What they may take where that is more: this share of all logits in fp32, up to `LARGEST_BUFFER`."""
LARGEST_BUFFER = 2**30
"""At a vocabulary of 128,256 in bf16 that is 4,186 tokens. Larger chunks save nothing but to read and write
the fp32 sum of the weight's gradient: 8 bytes an element and chunk, beside 6 operations an element and token,
8 % of the products' time on an H100 (3.3 TB/s, 800 TFLOP/s) at 4,186 tokens, less as their number grows."""
SMALL_TOTAL, SMALL_BUFFER = 2**25, 2**24
"""On a CPU the logits of a chunk take at most the latter, in bytes, where the weight's gradient in fp32 takes
at most the former: a cache then holds both."""
ROW_BYTES = {"cpu": 2**21, "cuda": 2**25}
"""What PyTorch's passes over some rows may take in fp32: on a CPU they stay in its caches."""
PRODUCT_ROWS = 256
"""Rows of a matrix product on a CPU, whose logits are in a cache when the rows are passed over."""


class _Head:
    """A call's sizes: N tokens of a rank, V columns."""

    def __init__(
        self, weight: Tensor, vocab_size: int, first: int, ranks: Ranks, terms: LossTerms, rows: str
    ) -> None:
        columns = weight.shape[0]
        self.weight, self.first, self.ranks = weight, first, ranks
        self.spec = RowSpec(max(0, min(columns, vocab_size - first)), vocab_size, terms)
        self.rows: RowPass = row_pass(rows)
        kind = weight.device.type
        self.product = self.block = PRODUCT_ROWS if kind == "cpu" else 2**30
        if not self.rows.any_size:
            self.block = max(8, ROW_BYTES.get(kind, 2**25) // (4 * columns))
            self.product = max(self.block, self.product // self.block * self.block)

    def padded(self, tokens: int) -> int:
        """`tokens`, and as many more as make the last block a whole one, where blocks have one size."""
        block = 1 if self.rows.any_size else min(self.block, tokens)
        return -(-tokens // block) * block

    def buffer(self, tokens: int) -> Tensor:
        """Memory for the logits of `tokens`."""
        return self.weight.new_empty(self.padded(tokens), self.weight.shape[0])

    def logits(self, hidden: Tensor, buffer: Tensor) -> None:
        """Logits of hidden, (tokens, width), in the first rows of the buffer."""
        torch.mm(hidden, self.weight.t(), out=buffer[: len(hidden)])

    def values(
        self, hidden: Tensor, column: Tensor, weights: Tensor, buffer: Tensor, needed: bool = True
    ) -> Tensor:
        """(3, tokens), as `RowPass.whole`; leaves the gradients of the logits in the buffer if `needed`.

        hidden: (tokens, width); column: (tokens,); weights: (3, tokens).
        """
        tokens = len(hidden)
        if len(buffer) > tokens:
            column = torch.nn.functional.pad(column, (0, len(buffer) - tokens), value=-1)
            weights = torch.nn.functional.pad(weights, (0, len(buffer) - tokens))
        found, block = [], min(self.block, len(buffer))
        if self.ranks.group:
            self.logits(hidden, buffer)
            found = [self._over_ranks(buffer, column, weights, block, needed)]
        else:
            for start in range(0, tokens, self.product):
                part = hidden[start : start + self.product]
                self.logits(part, buffer[start:])
                for row in range(start, start + len(part), block):
                    own = slice(row, row + block)
                    found.append(
                        self.rows.whole(buffer[own], column[own], weights[:, own].contiguous(), self.spec)
                    )
        return torch.cat(found, 1)[:, :tokens]

    def _over_ranks(
        self, buffer: Tensor, column: Tensor, weights: Tensor, block: int, needed: bool
    ) -> Tensor:
        """The same, of a vocabulary of which each rank has a part, with one exchange of 4 numbers a token."""
        blocks = [slice(row, row + block) for row in range(0, len(buffer), block)]
        own = [self.rows.statistics(buffer[each], column[each], self.spec) for each in blocks]
        mine = torch.cat(own, 1)
        size, group = self.ranks.size, self.ranks.group
        ranks = wait(start_all_gather(mine, size, group)).unflatten(0, (size, 4))
        largest = ranks[:, 0].amax(0)
        sums = (ranks[:, 1] * (ranks[:, 0] - largest).exp()).sum(0)
        log_sum = largest + sums.log()
        for each in blocks if needed else ():
            one = weights[:, each].contiguous()
            self.rows.gradient(buffer[each], column[each], one, log_sum[each].contiguous(), self.spec)
        return torch.stack((log_sum, ranks[:, 2].sum(0), ranks[:, 3].sum(0)))


def chunk_tokens(tokens: int, weight: Tensor) -> int:
    """Tokens of a chunk: as many as fit the buffer, chunks of equal size. weight: (columns, width)."""
    small = weight.device.type == "cpu" and 4 * weight.numel() <= SMALL_TOTAL
    least = min(BUFFER_BYTES, SMALL_BUFFER) if small else BUFFER_BYTES
    limit = max(least, min(LARGEST_BUFFER, int(BUFFER_SHARE * 4 * tokens * weight.shape[0])))
    chunks = -(-tokens * weight.shape[0] * weight.element_size() // limit)
    return -(-tokens // max(chunks, 1))


def _columns(labels: Tensor, head: _Head) -> Tensor:
    """(tokens,): the columns of these targets; -1 where there is none, or another rank has it."""
    column = labels - head.first
    if head.ranks.group:
        return column.where((column >= 0) & (column < head.spec.valid), -1)
    # A label outside the vocabulary is an error then, below it as well as above it.
    return column.where(column >= 0, head.weight.shape[0]).where(labels != IGNORE, -1)


def _unit_weights(labels: Tensor) -> Tensor:
    return (labels != IGNORE).float().expand(3, -1)


def _chunked(
    head: _Head, hidden: Tensor, labels: Tensor, weights: Tensor, weight_gradient: bool, needed: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """(3, tokens) values, and for these weights the gradients of hidden (tokens, width) and of the weight.

    labels: (tokens,). The gradients are empty where not `needed`. That of hidden is summed over the ranks, or
    is this rank's piece of the sum; that of the weight is in fp32.
    """
    tokens, columns = len(hidden), _columns(labels, head)
    size = chunk_tokens(tokens, head.weight)
    if not needed and not head.ranks.group:
        size = min(size, head.product)
    buffer, found = head.buffer(size), []
    for_hidden, for_weight = (torch.empty_like(hidden) if needed else hidden.new_empty(0)), None
    summing = for_hidden
    for start in range(0, tokens, size):
        own = slice(start, min(start + size, tokens))
        used = buffer[: head.padded(own.stop - start)]
        found.append(head.values(hidden[own], columns[own], weights[:, own], used, needed))
        if not needed:
            continue
        logits = used[: own.stop - own.start]
        head.rows.of_hidden(logits, head.weight, for_hidden[own])
        if own.stop == tokens:
            summing = head.ranks.start_sum(for_hidden)
        if weight_gradient:
            for_weight = head.rows.add_product(for_weight, logits, hidden[own])
    for_hidden = head.ranks.summed(summing) if needed else for_hidden
    nothing = hidden.new_empty(0, dtype=torch.float32)
    return torch.cat(found, 1), for_hidden, nothing if for_weight is None else for_weight


def _forward(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, first: int, group: str, size: int,
    pieces: bool, softcap: float, z_loss: float, label_smoothing: float, rows: str, gradients: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(batch,) each: nats, z-loss, label smoothing; the nats by label, (batch, seq); and what the backward
    pass needs.

    That is, *kept*, the gradients of the logits and nothing; *in chunks* those of hidden states and weight.
    Then the hidden states of all tokens where `hidden` is a piece of them, else nothing.
    """
    terms, ranks = LossTerms(softcap, z_loss, label_smoothing), Ranks(group, size, pieces)
    head = _Head(weight, vocab_size, first, ranks, terms, rows)
    flat, targets = ranks.gathered(hidden), ranks.ordered(labels).flatten()
    weights = _unit_weights(targets)
    if gradients and _is_kept(labels, weight):
        one, other = head.buffer(len(flat)), hidden.new_empty(0)
        values = head.values(flat, _columns(targets, head), weights, one)
        one = one[: len(flat)]
    else:
        values, one, other = _chunked(head, flat, targets, weights, weight_gradient, gradients)
    log_sum, target, total = values
    of_z = z_loss * log_sum.square() if z_loss else torch.zeros_like(log_sum)
    smoothing = label_smoothing * (target - total / vocab_size)
    if not label_smoothing:
        smoothing = torch.zeros_like(log_sum)
    nats = infinite_outside(log_sum - target, targets, vocab_size)
    by_token = torch.stack((nats, of_z, smoothing)).where(weights > 0, 0.0)
    by_label = ranks.by_label(by_token[0], len(labels))
    nats, of_z, smoothing = (each.clone() for each in ranks.by_row(by_token, len(labels)))
    return nats, of_z, smoothing, by_label, one, other, flat if pieces else hidden.new_empty(0)


_forward_operator = torch.library.custom_op("llmkit::head_loss", _forward, mutates_args=())


def _is_kept(labels: Tensor, weight: Tensor) -> bool:
    return chunk_tokens(labels.numel(), weight) >= labels.numel()


@_forward_operator.register_fake
def _(
    hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, first: int, group: str, size: int,
    pieces: bool, softcap: float, z_loss: float, label_smoothing: float, rows: str, gradients: bool,
    weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sums = [hidden.new_empty(len(labels), dtype=torch.float32) for _ in range(3)]
    tokens, width = labels.numel(), hidden.shape[-1]
    if not gradients:
        one, other = hidden.new_empty(0), hidden.new_empty(0, dtype=torch.float32)
    elif _is_kept(labels, weight):
        one, other = hidden.new_empty(tokens, weight.shape[0]), hidden.new_empty(0)
    else:
        shape = weight.shape if weight_gradient else (0,)
        own = tokens // size if pieces else tokens
        one, other = hidden.new_empty(own, width), hidden.new_empty(shape, dtype=torch.float32)
    by_label = hidden.new_empty(labels.shape, dtype=torch.float32)
    gathered = hidden.new_empty((tokens, width) if pieces else 0)
    return sums[0], sums[1], sums[2], by_label, one, other, gathered


def _backward(
    of_nats: Tensor, of_z: Tensor | None, of_smoothing: Tensor | None, one: Tensor, other: Tensor,
    hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, first: int, group: str, size: int,
    pieces: bool, softcap: float, z_loss: float, label_smoothing: float, rows: str, weight_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of hidden and of the weight (empty if not wanted), from those of the sums.

    hidden: the states of all tokens, (tokens, width); their gradient is (tokens, width), or a piece of that.
    """
    ranks, length, nothing = Ranks(group, size, pieces), labels.shape[1], weight.new_empty(0)
    terms = [of_z] * (z_loss > 0.0) + [of_smoothing] * (label_smoothing > 0.0)
    if all(_same(each, of_nats) for each in terms):
        if _is_kept(labels, weight):
            scale = ranks.by_token(of_nats, length)[:, None]
            found = row_pass(rows).of_hidden(one, weight, hidden.new_empty(hidden.shape))
            summing = ranks.start_sum((found * scale).to(hidden.dtype))
            scaled = (hidden * scale).to(hidden.dtype)
            for_weight = row_pass(rows).product(one, scaled) if weight_gradient else nothing
            return ranks.summed(summing), for_weight
        if _uniform(of_nats):
            scale = of_nats[0]
            for_weight = torch.empty_like(weight) if weight_gradient else nothing
            if weight_gradient:
                torch.mul(other, scale, out=for_weight)
            return one * scale, for_weight
    zero = torch.zeros_like(of_nats)
    by_row = torch.stack([of_nats, *(zero if each is None else each for each in (of_z, of_smoothing))])
    targets = ranks.ordered(labels).flatten()
    weights = ranks.by_token(by_row, length) * _unit_weights(targets)
    head = _Head(weight, vocab_size, first, ranks, LossTerms(softcap, z_loss, label_smoothing), rows)
    _, for_hidden, for_weight = _chunked(head, hidden, targets, weights, weight_gradient)
    return for_hidden, for_weight.to(weight.dtype)


_backward_operator = torch.library.custom_op("llmkit::head_loss_backward", _backward, mutates_args=())


@_backward_operator.register_fake
def _(
    of_nats: Tensor, of_z: Tensor | None, of_smoothing: Tensor | None, one: Tensor, other: Tensor,
    hidden: Tensor, weight: Tensor, labels: Tensor, vocab_size: int, first: int, group: str, size: int,
    pieces: bool, softcap: float, z_loss: float, label_smoothing: float, rows: str, weight_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    tokens, width = hidden.shape
    for_hidden = hidden.new_empty(tokens // size if pieces else tokens, width)
    return for_hidden, weight.new_empty(weight.shape if weight_gradient else (0,))


def _uniform(gradient: Tensor) -> bool:
    """Whether all elements are known to be the same: one number, expanded. On a CPU they are looked at."""
    if gradient.numel() <= 1 or gradient.stride(0) == 0:
        return True
    return gradient.is_cpu and bool((gradient == gradient[0]).all())


def _same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two gradients, (batch,) each, are known to be equal: one tensor, as those of a sum are."""
    if one is None:
        return False
    if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
        return True
    return one.is_cpu and torch.equal(one, other)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, labels, *settings, _, _ = inputs
    *_, by_label, one, other, gathered = output
    pieces = settings[4]
    ctx.save_for_backward(gathered if pieces else hidden, weight, labels, one, other)
    ctx.shape, ctx.settings = hidden.shape, settings
    ctx.mark_non_differentiable(by_label, one, other, gathered)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    hidden, weight, labels, one, other = ctx.saved_tensors
    of_nats, of_z, of_smoothing = upstream[:3]
    if of_nats is None:
        of_nats = torch.zeros(len(labels), device=hidden.device)
    compute: Any = _backward_operator if torch.compiler.is_compiling() else _backward
    for_hidden, for_weight = compute(
        of_nats,
        of_z,
        of_smoothing,
        one,
        other,
        hidden.reshape(-1, hidden.shape[-1]),
        weight,
        labels,
        *ctx.settings,
        ctx.needs_input_grad[1],
    )
    return for_hidden.view(ctx.shape), for_weight if ctx.needs_input_grad[1] else None, *[None] * 12


_forward_operator.register_autograd(_gradients, setup_context=_keep)


class _HeadLoss(torch.autograd.Function):
    """The same for eager code: within custom operators nothing that is compiled runs compiled."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_keep)
    backward: Any = staticmethod(once_differentiable(_gradients))


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
    rows: str = "",
) -> LossSum:
    """See `llmkit.kernels.head_loss.head_loss`. rows: the way to pass over rows; default: by `compiled`."""
    if not gradients:
        hidden, weight = hidden.detach(), weight.detach()
    compute: Any = _forward_operator if torch.compiler.is_compiling() else _HeadLoss.apply
    nats, z_loss, label_smoothing, by_token, *_ = compute(
        hidden, weight, labels, vocab_size, first,
        "" if group is None else group.group_name, 1 if group is None else group.size(),
        pieces, *terms, rows or ("compiled" if compiled else "torch"),
        gradients and (hidden.requires_grad or weight.requires_grad), weight.requires_grad,
    )  # fmt: skip
    extras = {"z_loss": z_loss, "label_smoothing": label_smoothing}
    extras = {name: extra.sum() for name, extra in extras.items() if getattr(terms, name)}
    return LossSum(nats, (labels != IGNORE).sum(-1), extras, by_token=by_token)
