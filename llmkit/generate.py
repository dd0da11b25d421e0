"""Sampling text from a model."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.model.base import Model
from llmkit.prompts import Prompt, until


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

    @property
    def heeds_seen(self) -> bool:
        """Whether the choice depends on the ids so far."""
        return self.repetition_penalty != 1.0

    def choose(self, logits: Tensor, seen: Tensor | None, generator: torch.Generator) -> int:
        """logits: (vocab,) fp32; seen: (n,) ids so far, None unless `heeds_seen` -> the next id."""
        if seen is not None and self.heeds_seen:
            found = logits[seen]
            penalised = torch.where(
                found > 0, found / self.repetition_penalty, found * self.repetition_penalty
            )
            logits = logits.scatter(0, seen, penalised)
        if self.temperature < 1e-5:  # the quotients would be too large for fp32
            return int(logits.argmax())
        logits = logits / self.temperature
        if 0 < self.top_k < logits.numel():
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[-1], float("-inf"))
        probabilities = logits.softmax(-1)
        if self.top_p < 1.0:
            sorted_p, order = probabilities.sort(descending=True)
            outside = sorted_p.cumsum(-1) - sorted_p >= self.top_p
            probabilities[order[outside]] = 0.0
        return int(torch.multinomial(probabilities.cpu(), 1, generator=generator))


@torch.inference_mode()
def generate(
    model: Model,
    prompt: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stops: Collection[int],
    use_cache: bool = True,
    never: Tensor | None = None,
) -> Iterator[int]:
    """Ids that continue `prompt`, one by one, up to one of `stops` (not given out) or `max_new_tokens`.

    never: (vocab,) bool, ids that are not chosen.
    When the model's context is full, its newer half is kept and read again. With and without the
    cache the same tokens come out in fp32.
    """
    device, limit = next(model.parameters()).device, model.context_length
    generator = torch.Generator().manual_seed(sampling.seed)
    context = unread = _fit(prompt, limit)
    cache = model.new_cache() if use_cache else None
    seen = list(prompt)
    for _ in range(max_new_tokens):
        logits = model.logits(torch.tensor([unread], device=device), cache)[0]
        if never is not None:
            logits = logits.masked_fill(never, float("-inf"))
        ids = torch.tensor(seen, device=device).unique() if sampling.heeds_seen else None
        token = sampling.choose(logits, ids, generator)
        if token in stops:
            return
        yield token
        seen.append(token)
        full = len(context) == limit
        context = _fit([*context, token], limit)
        unread = context if cache is None or full else [token]
        if cache is not None and full:
            cache.length = 0


def _fit(context: list[int], limit: int) -> list[int]:
    """All of the context, or its newer half where it is longer than the model can see."""
    return context if len(context) <= limit else context[-(limit // 2) :]


def _without_text(model: Model, tokenizer: Tokenizer) -> Tensor | None:
    """(vocab,) bool: the ids that the tokenizer lacks, of a model with a larger vocabulary; None = none."""
    never = torch.ones(model.vocab_size, dtype=torch.bool)
    never[torch.from_numpy(tokenizer.known_ids)] = False
    return never.to(next(model.parameters()).device) if never.any() else None


def stream_text(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_new_tokens: int,
    sampling: Sampling,
    use_cache: bool = True,
) -> Iterator[str]:
    """Text that continues `prompt`, as it comes, up to what ends it; whole characters only."""
    return until(_texts(model, tokenizer, prompt, max_new_tokens, sampling, use_cache), prompt.stop_text)


def _texts(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_new_tokens: int,
    sampling: Sampling,
    use_cache: bool,
) -> Iterator[str]:
    decoder = tokenizer.stream(prompt.ids)
    never = _without_text(model, tokenizer)
    tokens = generate(
        model, prompt.ids, max_new_tokens, sampling, stops=prompt.stops, use_cache=use_cache, never=never
    )
    for token in tokens:
        if text := decoder.push(token):
            yield text
    if rest := decoder.finish():
        yield rest
