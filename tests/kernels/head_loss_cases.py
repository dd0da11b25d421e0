"""The head and the loss in plain autograd, for any type; and cases that a form of them must get right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmkit.batch import IGNORE, LossSum
from llmkit.kernels.head_loss import LossTerms
from tests.kernels.float64 import relative_error

TERMS = {
    "plain": LossTerms(),
    "softcap": LossTerms(softcap=4.0),
    "z-loss": LossTerms(z_loss=1e-2),
    "smoothing": LossTerms(label_smoothing=0.1),
    "all": LossTerms(3.0, 2e-2, 0.2),
}


class Case(NamedTuple):
    """hidden: (batch, seq, width); weight: (vocabulary with padding, width); labels: (batch, seq)."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    vocab_size: int

    @classmethod
    def of(cls, dtype: torch.dtype, device: str = "cpu", rows: int = 48, vocab_size: int = 37) -> Case:
        """Odd sizes, padding of the vocabulary, a row with few targets and one with none."""
        generator = torch.Generator().manual_seed(0)
        hidden = torch.randn(4, 11, 24, generator=generator) * 1.5
        weight = torch.randn(rows, 24, generator=generator)
        labels = torch.randint(vocab_size, (4, 11), generator=generator)
        labels[1, 2:] = IGNORE
        labels[2] = IGNORE
        return cls(hidden.to(device, dtype), weight.to(device, dtype), labels.to(device), vocab_size)


def reference(case: Case, terms: LossTerms) -> LossSum:
    """In float64, step by step."""
    logits = case.hidden @ case.weight.T
    if terms.softcap:
        logits = terms.softcap * (logits / terms.softcap).tanh()
    logits = logits[..., : case.vocab_size]
    is_target = case.labels != IGNORE
    log_sum = logits.logsumexp(-1)
    target = logits.gather(-1, case.labels.clamp(min=0)[..., None]).squeeze(-1)
    added = {
        "z_loss": terms.z_loss * log_sum.square(),
        "label_smoothing": terms.label_smoothing * (target - logits.mean(-1)),
    }
    extras = {name: (each * is_target).sum() for name, each in added.items() if getattr(terms, name)}
    nats = (log_sum - target) * is_target
    return LossSum(nats.sum(-1), is_target.sum(-1), extras, by_token=nats.detach())


OBJECTIVES: dict[str, Callable[[LossSum], Tensor]] = {
    "as engines do": lambda loss: loss.objective / 7,
    "rows weighted": lambda loss: (
        (loss.nats * torch.arange(1.0, len(loss.nats) + 1, device=loss.nats.device)).sum()
        + sum(extra * 0.3 for extra in loss.extras.values())
    ),
    "without the extras": lambda loss: loss.nats.sum() * 0.5,
    "one row": lambda loss: loss.nats[0],
}
"""What is minimised. Only in the first one is the gradient of all sums the same number."""


def check(
    form: Callable[..., LossSum],
    case: Case,
    terms: LossTerms,
    objective: str,
    tolerance: float,
    **options: Any,
) -> None:
    """Asserts that values and gradients of a form are those of `reference` in float64."""

    def run(case: Case, function: Callable[[Case], LossSum]) -> tuple[LossSum, Case]:
        leaves = case._replace(
            hidden=case.hidden.clone().requires_grad_(), weight=case.weight.clone().requires_grad_()
        )
        loss = function(leaves)
        OBJECTIVES[objective](loss).backward()
        return loss, leaves

    exact = case._replace(hidden=case.hidden.double(), weight=case.weight.double())
    wanted, exact = run(exact, lambda case: reference(case, terms))
    found, case = run(case, lambda case: form(*case, terms=terms, **options))
    assert torch.equal(found.targets, wanted.targets), "targets"
    assert found.nats.dtype == torch.float32 and set(found.extras) == set(wanted.extras), "types, extras"
    assert found.by_token is not None and wanted.by_token is not None and not found.by_token.requires_grad
    assert found.by_token.dtype == torch.float32 and not found.by_token[case.labels == IGNORE].any()
    pairs = {"nats": (found.nats, wanted.nats), "nats by token": (found.by_token, wanted.by_token)}
    pairs |= {name: (found.extras[name], extra) for name, extra in wanted.extras.items()}
    pairs |= {
        "hidden": (case.hidden.grad, exact.hidden.grad),
        "weight": (case.weight.grad, exact.weight.grad),
    }
    for name, (one, other) in pairs.items():
        error = relative_error(one, other)
        assert error <= tolerance, f"{name}: relative error {error:.1e} > {tolerance:.0e}"
    padding = case.weight.grad[case.vocab_size :]
    assert not padding.any(), "padding of the vocabulary has a gradient"
