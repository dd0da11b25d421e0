"""How the next token is chosen from the logits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.errors import UserError

GREEDY = 1e-5
"""Temperatures below this take the likeliest token: the quotients would be too large for fp32."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature: 0 = always the likeliest. top_k: only this many likeliest tokens; 0 = all. top_p: only
    the likeliest tokens that together have this probability (Holtzman et al. 2020). repetition_penalty:
    logits of tokens already seen are divided by it if positive, else multiplied (Keskar et al. 2019).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = [
            (
                0.0 <= self.temperature < math.inf,
                f"temperature is {self.temperature}, it must be a number of at least 0",
            ),
            (self.top_k >= 0, f"top-k is {self.top_k}, it must be at least 0 (0 = all tokens)"),
            (0.0 < self.top_p <= 1.0, f"top-p is {self.top_p}, it must lie above 0 and be at most 1"),
            (
                1e-3 <= self.repetition_penalty <= 1e3,  # beyond that, logits are too large for fp32
                f"repetition-penalty is {self.repetition_penalty}, it must lie between 0.001 and 1000",
            ),
            (0 <= self.seed < 2**63, f"seed is {self.seed}, it must lie between 0 and 2^63 - 1"),
        ]
        wrong = [text for good, text in rules if not good]
        if wrong:
            raise UserError("; ".join(wrong))


class Chooser:
    """What one row remembers from token to token: its random numbers and the ids that it has seen.

    ids: the prompt. vocab_size: number of logits, which are on `device`.
    """

    def __init__(self, sampling: Sampling, ids: Iterable[int], vocab_size: int, device: torch.device) -> None:
        self.sampling = sampling
        self.seen: Tensor | None = None  # (vocab,) bool, where the choice depends on it
        if sampling.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool)
            self.seen[torch.tensor(list(ids), dtype=torch.int64)] = True
            self.seen = self.seen.to(device)
        self._generator = torch.Generator().manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether it takes the likeliest token."""
        return self.sampling.temperature < GREEDY

    def draw(self) -> float:
        """A random number of at least 0 and below 1; the n-th call gives the same for a seed."""
        return float(torch.rand((), dtype=torch.float64, generator=self._generator))


def choose(logits: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """logits: (rows, vocab) fp32, a chooser each -> (rows,) int64, on the device.

    Without waiting for it. -1 where the largest logit is no number, as of a diverged model. What a row gets
    depends on its own logits and chooser alone.
    """
    finite = logits.amax(-1).isfinite()
    logits = _penalised(logits, choosers)
    tokens = logits.argmax(-1)
    if not all(chooser.greedy for chooser in choosers):
        greedy = torch.tensor([chooser.greedy for chooser in choosers], device=logits.device)
        tokens = torch.where(greedy, tokens, _drawn(logits, choosers))
    for row, chooser in enumerate(choosers):
        if chooser.seen is not None:
            chooser.seen.scatter_(0, tokens[row : row + 1], True)
    return tokens.masked_fill(~finite, -1)


def _penalised(logits: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """The logits of tokens that a row has seen, smaller."""
    if all(chooser.seen is None for chooser in choosers):
        return logits
    nothing = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    seen = torch.stack([nothing if chooser.seen is None else chooser.seen for chooser in choosers])
    penalty = _column([chooser.sampling.repetition_penalty for chooser in choosers], logits)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _drawn(logits: Tensor, choosers: Sequence[Chooser]) -> Tensor:
    """A token of each row by its probability, (rows,): where its random number lies among their sums."""
    samplings = [chooser.sampling for chooser in choosers]
    logits = logits / _column([1.0 if s.temperature < GREEDY else s.temperature for s in samplings], logits)
    vocab, order = logits.shape[-1], None
    if any(s.top_k or s.top_p < 1.0 for s in samplings):
        # As many of the likeliest as any row may take, in order.
        most = max(s.top_k or vocab for s in samplings)
        logits, order = logits.topk(most) if most < vocab else logits.sort(descending=True)
        taken = _column([s.top_k or most for s in samplings], logits)
        rank = torch.arange(logits.shape[-1], device=logits.device)
        logits = logits.masked_fill(rank >= taken, float("-inf"))
    probabilities = logits.softmax(-1).double()
    if any(s.top_p < 1.0 for s in samplings):
        before = probabilities.cumsum(-1) - probabilities
        outside = before >= _column([s.top_p for s in samplings], before)
        outside[:, 0] = False
        probabilities = probabilities.masked_fill(outside, 0.0)
    if order is not None:  # by id, whether or not another row needs the order: so each draws as if alone
        probabilities = probabilities.new_zeros(len(logits), vocab).scatter(-1, order, probabilities)
    sums = probabilities.cumsum(-1)
    number = _column([0.0 if chooser.greedy else chooser.draw() for chooser in choosers], sums)
    # Below the last sum even where it is rounded: what has no probability is behind it, and never chosen.
    place = torch.searchsorted(sums, number.clamp(max=1.0 - 1e-12) * sums[:, -1:], right=True)
    return place[:, 0].clamp(max=vocab - 1)  # beyond it only where the logits are no numbers


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """(rows, 1), in the type and on the device of `like`."""
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
