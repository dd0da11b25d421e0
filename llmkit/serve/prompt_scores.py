"""Log-probabilities of the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from llmkit.generation.session import Token
from llmkit.model.gpt import GPT

POSITIONS = 256
"""Whose logits are held at once."""


@torch.inference_mode()
def prompt_scores(model: GPT, ids: Sequence[int], top: int) -> list[Token]:
    """Each id with its log-probability after those before it, and the `top` likeliest; the first has none.

    The model must not be sharded, and ids be at most as many as its context.
    """
    tokens = torch.tensor([ids], device=model.embedding.weight.device)
    found = [Token(ids[0])]
    for start, hidden in enumerate(model.hidden(tokens)[0, :-1].split(POSITIONS)):
        logprobs = model.head.logits(hidden).log_softmax(-1)  # (positions, vocab)
        following = tokens[0, 1 + start * POSITIONS :][: len(hidden), None]
        best = logprobs.topk(min(top, logprobs.shape[-1]))
        own = logprobs.gather(-1, following)[:, 0].tolist()
        rows = zip(following[:, 0].tolist(), own, best.indices.tolist(), best.values.tolist(), strict=True)
        found += [
            Token(id, logprob=logprob, top=tuple(zip(others, values, strict=True)))
            for id, logprob, others, values in rows
        ]
    return found
