"""The cross-entropy of some rows of logits, in place: each row of logits becomes its gradient.

What stands between the matrix products of the head. In plain PyTorch, or the same compiled; in Triton:
`llmkit.kernels.triton.cross_entropy`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llmkit.kernels.compiler import compile_function
from llmkit.kernels.head_loss import LossTerms


class RowSpec(NamedTuple):
    """What is the same for all rows.

    valid: how many of the columns are tokens, the rest is padding. vocab_size: tokens of all ranks.
    """

    valid: int
    vocab_size: int
    terms: LossTerms


class RowPass(Protocol):
    """A way to compute it. For all of its methods:

    x: (rows, columns) logits, row-major. column: (rows,) int64, where the target is; -1: not among these.
    weights: (3, rows) fp32, the gradients of each row's nats, z-loss and label smoothing.
    any_size: whether it takes as many rows as there are; else blocks of one size, which stay in a cache.
    """

    any_size: bool

    def whole(self, x: Tensor, column: Tensor, weights: Tensor, spec: RowSpec) -> Tensor:
        """Makes x the gradient of the logits. Returns (3, rows) fp32: log(sum exp), the target's logit, and
        the sum of all logits (0 where no label smoothing asks for it)."""
        ...

    def statistics(self, x: Tensor, column: Tensor, spec: RowSpec) -> Tensor:
        """Of the columns of one rank, (4, rows) fp32: the largest logit, the sum of exponentials relative to
        it, the target's logit (0 where it is elsewhere), the sum of all logits."""
        ...

    def gradient(self, x: Tensor, column: Tensor, weights: Tensor, log_sum: Tensor, spec: RowSpec) -> None:
        """Makes x the gradient of the logits; log_sum: (rows,) log(sum exp) over the columns of all ranks."""
        ...

    def of_hidden(self, gradient: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """out = gradient weight, the gradient of the hidden states.

        gradient: (tokens, columns); weight: (columns, width); out: (tokens, width).
        """
        ...

    def product(self, gradient: Tensor, hidden: Tensor) -> Tensor:
        """gradient' hidden, the gradient of the weight.

        gradient: (tokens, columns); hidden: (tokens, width).
        """
        ...

    def add_product(self, total: Tensor | None, gradient: Tensor, hidden: Tensor) -> Tensor:
        """total + gradient' hidden in fp32, in the memory of `total`, if there is one."""
        ...


def _logits(x: Tensor, spec: RowSpec) -> tuple[Tensor, Tensor | None]:
    """Capped logits in fp32, -inf at padding; and the derivative of the cap, if there is one."""
    logits, slope = x.float(), None
    if softcap := spec.terms.softcap:
        bounded = (logits / softcap).tanh()
        logits, slope = bounded * softcap, 1.0 - bounded.square()
    if spec.valid < x.shape[1]:
        logits = logits.where(_is_token(x, spec), float("-inf"))
    return logits, slope


def _is_token(x: Tensor, spec: RowSpec) -> Tensor:
    return torch.arange(x.shape[1], device=x.device) < spec.valid


def _largest(logits: Tensor) -> Tensor:
    """(rows, 1), finite where all columns are padding."""
    return logits.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)


def _target(logits: Tensor, column: Tensor) -> Tensor:
    """(rows,): the logit at `column`, 0 where that is -1."""
    return logits.gather(1, column.clamp(min=0)[:, None]).squeeze(1).where(column >= 0, 0.0)


def _total(logits: Tensor, spec: RowSpec) -> Tensor:
    """(rows,): the sum of the tokens' logits."""
    if not spec.terms.label_smoothing:
        return torch.zeros_like(logits[:, 0])
    return (logits.where(_is_token(logits, spec), 0.0) if spec.valid < logits.shape[1] else logits).sum(-1)


def _store(
    x: Tensor, probability: Tensor, slope: Tensor | None, column: Tensor, weights: Tensor, spec: RowSpec
) -> None:
    """Writes the gradient into x. probability: (rows, columns), times its coefficient."""
    smoothing = spec.terms.label_smoothing
    at_target = weights[0] - smoothing * weights[2] if smoothing else weights[0]
    hit = torch.arange(x.shape[1], device=x.device) == column[:, None]
    gradient = torch.where(hit, probability - at_target[:, None], probability)
    if smoothing:
        gradient = gradient - (smoothing / spec.vocab_size) * weights[2][:, None]
    if slope is not None:
        gradient = gradient * slope
    if smoothing and spec.valid < x.shape[1]:
        gradient = gradient.where(_is_token(x, spec), 0.0)
    x.copy_(gradient)


def _coefficient(log_sum: Tensor, weights: Tensor, spec: RowSpec) -> Tensor:
    """(rows,): what the probabilities are multiplied by, d(nats + z-loss) / d(log sum exp)."""
    if not spec.terms.z_loss:
        return weights[0]
    return weights[0] + (2.0 * spec.terms.z_loss) * log_sum * weights[1]


def whole(x: Tensor, column: Tensor, weights: Tensor, spec: RowSpec) -> Tensor:
    """See `RowPass.whole`. Exponentials are computed once."""
    logits, slope = _logits(x, spec)
    target, total = _target(logits, column), _total(logits, spec)
    largest = _largest(logits)
    exponentials = (logits - largest).exp_()
    sums = exponentials.sum(-1)
    log_sum = largest.squeeze(1) + sums.log()
    coefficient = _coefficient(log_sum, weights, spec) / sums
    _store(x, exponentials.mul_(coefficient[:, None]), slope, column, weights, spec)
    return torch.stack((log_sum, target, total))


def statistics(x: Tensor, column: Tensor, spec: RowSpec) -> Tensor:
    """See `RowPass.statistics`."""
    logits, _ = _logits(x, spec)
    largest = _largest(logits)
    sums = (logits - largest).exp().sum(-1)
    return torch.stack((largest.squeeze(1), sums, _target(logits, column), _total(logits, spec)))


def gradient(x: Tensor, column: Tensor, weights: Tensor, log_sum: Tensor, spec: RowSpec) -> None:
    """See `RowPass.gradient`."""
    logits, slope = _logits(x, spec)
    probability = (logits - log_sum[:, None]).exp_()
    probability.mul_(_coefficient(log_sum, weights, spec)[:, None])
    _store(x, probability, slope, column, weights, spec)


class Products:
    """The products with the gradients of logits, in PyTorch."""

    def of_hidden(self, gradient: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See `RowPass.of_hidden`."""
        return torch.mm(gradient, weight, out=out)

    def product(self, gradient: Tensor, hidden: Tensor) -> Tensor:
        """See `RowPass.product`."""
        return torch.mm(gradient.t(), hidden)

    def add_product(self, total: Tensor | None, gradient: Tensor, hidden: Tensor) -> Tensor:
        """See `RowPass.add_product`."""
        shape, transposed = (gradient.shape[1], hidden.shape[1]), gradient.t()
        first = total is None
        if total is None:
            total = hidden.new_empty(shape, dtype=torch.float32)
        if hidden.dtype == torch.float32:
            return torch.mm(transposed, hidden, out=total) if first else total.addmm_(transposed, hidden)
        if hidden.is_cuda and torch.version.hip is None:
            if first:
                return torch.mm(transposed, hidden, out_dtype=torch.float32, out=total)
            return torch.addmm(total, transposed, hidden, out_dtype=torch.float32, out=total)
        rows = max(1, 2**21 // shape[1])  # what is added is in a cache then
        for part, into in zip(transposed.split(rows), total.split(rows), strict=True):
            into.copy_(torch.mm(part, hidden)) if first else into.add_(torch.mm(part, hidden))
        return total


class PlainRows(Products):
    """In plain PyTorch."""

    any_size = False
    whole = staticmethod(whole)
    statistics = staticmethod(statistics)
    gradient = staticmethod(gradient)


class CompiledRows(Products):
    """The same, compiled. Where that fails, `report` is called with the reason, and it is plain PyTorch."""

    any_size = False

    def __init__(self, report: Callable[[str], None], backend: str | Callable[..., Any] = "inductor") -> None:
        self.whole, self.statistics, self.gradient = (
            compile_function(function, report, backend) for function in (whole, statistics, gradient)
        )


ROW_PASSES: dict[str, RowPass] = {"torch": PlainRows()}
"""By name: a name can be an argument of a custom operator. "compiled" is made when it is asked for."""


def row_pass(name: str) -> RowPass:
    """The way of this name."""
    if name == "compiled" and name not in ROW_PASSES:
        report_to(warnings.warn)
    return ROW_PASSES[name]


def report_to(report: Callable[[str], None]) -> None:
    """Sets what is called with the reason where compilation fails; by default that is a warning."""
    ROW_PASSES["compiled"] = CompiledRows(report)
