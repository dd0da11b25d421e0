"""Answers that a model writes, several at once, shared out over data- and context-parallel ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Scorer
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import Request, Session, in_turns
from llmkit.generation.text import StopStrings, without_text
from llmkit.model.base import Model

MOST_ROWS = 64
"""Answers that are written at once, at most, unless more are asked for."""


class AnswerRequest(NamedTuple):
    """Ids to go on from, and until when: so many tokens, one of these strings, or the end of a text.

    A string that is a special token means that token; no other string is found in special tokens.
    """

    ids: list[int]
    max_new_tokens: int
    stops: list[str]
    sampling: dict[str, float]

    def request(self, text: HubText) -> Request:
        """What a session is asked for."""
        special = text.tokenizer.control_tokens
        ends = {text.eos_id, *text.tokenizer.ends, *(special[s] for s in self.stops if s in special)}
        return Request(self.ids, self.max_new_tokens, Sampling(**self.sampling), ends)  # type: ignore[arg-type]


def rows_at_once(scorer: Scorer) -> int:
    """Answers that a rank writes at once."""
    return scorer.rows or max(1, min(MOST_ROWS, scorer.tokens // scorer.context_length))


def answers(scorer: Scorer, prompts: Sequence[AnswerRequest]) -> list[str]:
    """What the model writes after each prompt, up to what ends it. Collective; on rank 0, nothing on others.

    Texts are without special tokens, as lm-eval's adapters give them.
    """
    scorer.before_batch()
    shared = scorer.mesh["data", "context"]
    mine = range(shared.rank, len(prompts), shared.size)
    with _ready(scorer.model()) as model:
        found = dict(zip(mine, _written(scorer, model, [prompts[number] for number in mine]), strict=True))
    own = found if scorer.mesh["tensor"].rank == 0 else {}
    gathered = scorer.mesh.gather_bytes(json.dumps(own).encode())
    texts = {int(number): text for part in gathered for number, text in json.loads(part).items()}
    return [texts[number] for number in range(len(prompts))] if scorer.mesh.rank == 0 else []


def _written(scorer: Scorer, model: Model, prompts: Sequence[AnswerRequest]) -> list[str]:
    """The answers to this rank's prompts."""
    text, tokenizer = scorer.text, scorer.text.tokenizer
    special = set(tokenizer.control_tokens.values())
    session = Session(model, never=without_text(model, tokenizer))
    keys: dict[int, int] = {}
    ids: list[list[int]] = [[] for _ in prompts]
    decoders = [tokenizer.stream(prompt.ids) for prompt in prompts]
    stops = [StopStrings(prompt.stops) for prompt in prompts]

    def add(number: int) -> int:
        keys[number] = session.add(prompts[number].request(text))
        return keys[number]

    for number, token in in_turns(session, [len(each.ids) for each in prompts], add, rows_at_once(scorer)):
        if token.end == "stop":
            continue
        ids[number].append(token.id)
        if token.id in special:
            continue
        _, stopped = stops[number].push(decoders[number].push(token.id))
        if stopped and token.end is None:
            session.drop(keys[number])
    return [_cut(text.decode(own), prompt.stops) for own, prompt in zip(ids, prompts, strict=True)]


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the strings."""
    for stop in stops:
        text = text.partition(stop)[0] if stop else text
    return text


@contextmanager
def _ready(model: Model) -> Iterator[Model]:
    """The model without dropout, and nothing of it compiled anew for the shapes of generation."""
    training = model.training
    model.eval()
    try:
        if model.compiled:
            with torch.compiler.set_stance("force_eager"):
                yield model
        else:
            yield model
    finally:
        model.train(training)
