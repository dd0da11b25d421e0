"""The training loop of the recipes in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.batch import IGNORE, Batch


class Plain:
    """A model whose loss is one function of tokens and labels, and what updates it.

    loss: (tokens, labels) -> the nats summed over the targets. update: is called with the number of the
    step (1 = the first) when the gradients are there. autocast: in bf16, around the forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        update: Callable[[int], None],
        *,
        compiled: bool,
        autocast: bool,
    ) -> None:
        self.parameters = sum(each.numel() for each in model.parameters())
        self._model, self._loss, self._update, self._autocast = model, loss, update, autocast
        self._training_loss: Any = torch.compile(loss, dynamic=False) if compiled else loss
        self._number = 0

    def step(self, batch: Batch) -> None:
        """Forward, backward, update."""
        self._number += 1
        with self._context():
            nats = self._training_loss(batch.tokens, batch.labels)
        (nats / (batch.labels != IGNORE).sum()).backward()
        self._update(self._number)
        self._model.zero_grad(set_to_none=True)

    def nats(self, batch: Batch) -> Tensor:
        """Not compiled: it is called a few times only."""
        with torch.no_grad(), self._context():
            return self._loss(batch.tokens, batch.labels)

    def _context(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if self._autocast else nullcontext()


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """In fp32. logits: (batch, seq, vocabulary); labels: (batch, seq), IGNORE where there is no target."""
    flat, wanted = logits.flatten(0, 1).float(), labels.flatten()
    return F.cross_entropy(flat, wanted, ignore_index=IGNORE, reduction="sum")


def adamw_update(
    model: nn.Module,
    *,
    rate: Callable[[int], float],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clipping: float,
) -> Callable[[int], None]:
    """AdamW with one learning rate, `rate` of the step's number; matrices alone decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=betas, eps=eps, fused=True
    )

    def update(number: int) -> None:
        nn.utils.clip_grad_norm_(parameters, clipping)
        set_rates(optimizer.param_groups, [rate(number)] * len(optimizer.param_groups))
        optimizer.step()

    return update


def set_rates(groups: Iterable[dict[str, Any]], rates: Sequence[float]) -> None:
    """Gives each group of an optimizer its learning rate."""
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
