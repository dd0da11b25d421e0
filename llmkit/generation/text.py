"""Text of generated tokens: whole characters, up to what ends it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import Request, Session, Token, in_turns
from llmkit.model.base import Model
from llmkit.prompts import Prompt


class StopStrings:
    """Gives out text up to the first of some strings, which may come in pieces; "" is none."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that surely comes before any stop, whether one was found); the rest is held back."""
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        kept = max((_begun(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - kept :]
        return held[: len(held) - kept], False

    def finish(self) -> str:
        """What was held back."""
        rest, self._held = self._held, ""
        return rest


def _begun(text: str, stop: str) -> int:
    """Characters at the end of the text that begin `stop`, as many as possible."""
    longest = min(len(stop) - 1, len(text))
    return next((count for count in range(longest, 0, -1) if text.endswith(stop[:count])), 0)


@dataclass(frozen=True)
class Piece:
    """What a token adds to an answer: its text may be empty while a character or a stop is incomplete.

    end: why the answer ends here, "stop" or "length"; None = it goes on.
    """

    text: str
    token: Token
    end: Literal["stop", "length"] | None


class Answer:
    """Makes text of one row's tokens. stops: strings that end it, beside those of the prompt."""

    def __init__(self, tokenizer: Tokenizer, prompt: Prompt, stops: Sequence[str] = ()) -> None:
        self._decoder = tokenizer.stream(prompt.ids)
        self._stops = StopStrings([*prompt.stop_texts, *stops])

    def push(self, token: Token) -> Piece:
        """What the token adds. After an end there must be no other."""
        text, found = self._stops.push("" if token.end == "stop" else self._decoder.push(token.id))
        if not found and token.end is not None:
            last, found = self._stops.push(self._decoder.finish())
            text += last if found else last + self._stops.finish()
        return Piece(text, token, "stop" if found else token.end)


@dataclass
class Completion:
    """An answer, which may still grow. end: why it ended, "stop" or "length"; None = it has not.

    tokens: all that were made, with a stop that ended it.
    """

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    end: Literal["stop", "length"] | None = None


class TextSession:
    """A `Session` whose rows are prompts and whose results are text; use_cache, keep: see there."""

    def __init__(
        self, model: Model, tokenizer: Tokenizer, *, use_cache: bool = True, keep: bool = False
    ) -> None:
        never = without_text(model, tokenizer)
        self._session = Session(model, never=never, use_cache=use_cache, keep=keep)
        self._tokenizer = tokenizer
        self._answers: dict[int, Answer] = {}

    def __len__(self) -> int:
        """Answers at work."""
        return len(self._session)

    def add(
        self,
        prompt: Prompt,
        max_new_tokens: int,
        sampling: Sampling,
        *,
        stops: Sequence[str] = (),
        logprobs: int | None = None,
    ) -> int:
        """Begins an answer; returns its key, the next of 0, 1, .... stops: strings that end it."""
        request = Request(prompt.ids, max_new_tokens, sampling, prompt.stops, logprobs)
        key = self._session.add(request)
        self._answers[key] = Answer(self._tokenizer, prompt, stops)
        return key

    def drop(self, key: int) -> None:
        """Ends an answer before its time."""
        self._session.drop(key)
        del self._answers[key]

    def step(self) -> list[tuple[int, Piece]]:
        """What the next token adds to each answer, with its key; answers that end are dropped."""
        found = []
        for key, token in self._session.step():
            piece = self._answers[key].push(token)
            found.append((key, piece))
            if piece.end is not None:
                del self._answers[key]
                if token.end is None:  # a stop string, of which the session knows nothing
                    self._session.drop(key)
        return found


def stream_batch(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    sampling: Sampling | Sequence[Sampling],
    *,
    stops: Sequence[str] = (),
    rows: int = 16,
    use_cache: bool = True,
    logprobs: int | None = None,
) -> Iterator[tuple[int, Piece]]:
    """(number of the prompt, what is added to its answer) as it comes; see `TextSession` and `in_turns`.

    sampling: of all prompts, or one each. rows: how many are answered at once.
    """
    samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    session = TextSession(model, tokenizer, use_cache=use_cache)

    def add(number: int) -> int:
        return session.add(
            prompts[number], max_new_tokens, samplings[number], stops=stops, logprobs=logprobs
        )

    return in_turns(session, [len(prompt.ids) for prompt in prompts], add, rows)


def growing(pieces: Iterable[tuple[int, Piece]], count: int) -> Iterator[tuple[int, Completion]]:
    """(number of the prompt, its answer so far) each time that one has grown.

    pieces: of `stream_batch`, for so many prompts.
    """
    found = [Completion() for _ in range(count)]
    for number, piece in pieces:
        answer = found[number]
        answer.text += piece.text
        answer.tokens.append(piece.token)
        answer.end = piece.end
        yield number, answer


def complete(pieces: Iterable[tuple[int, Piece]], count: int) -> list[Completion]:
    """The answers to all prompts, in their order; arguments as of `growing`."""
    found = dict(growing(pieces, count))
    return [found[number] for number in range(count)]


def stream_text(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Prompt,
    max_new_tokens: int,
    sampling: Sampling,
    use_cache: bool = True,
) -> Iterator[str]:
    """Text that continues `prompt`, as it comes, up to what ends it; whole characters only."""
    pieces = stream_batch(model, tokenizer, [prompt], max_new_tokens, sampling, use_cache=use_cache)
    yield from (piece.text for _, piece in pieces if piece.text)


def without_text(model: Model, tokenizer: Tokenizer) -> Tensor | None:
    """(vocab,) bool: the ids that the tokenizer lacks, of a model with a larger vocabulary; None = none."""
    never = torch.ones(model.vocab_size, dtype=torch.bool)
    never[torch.from_numpy(tokenizer.known_ids)] = False
    return never.to(next(model.parameters()).device) if never.any() else None
