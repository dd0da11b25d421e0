"""Rows that are generated together: they begin and end at any time, each as if it were alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from llmkit.errors import UserError
from llmkit.generation.kept import KeptRows
from llmkit.generation.sampling import Chooser, Sampling, choose
from llmkit.model.base import Model

READ_TOKENS = 8192
"""Tokens of prompts that are read in one pass, padding included; a longer prompt has its own."""


@dataclass(frozen=True)
class Request:
    """A row to generate.

    ids: the prompt, one id at least. stops: ids that end it. logprobs: None, or how many of the likeliest
    tokens are wanted with their log-probabilities, beside that of the chosen one; 0 = that alone.
    """

    ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    stops: Collection[int] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """One token of a row.

    end: "stop" where it is one of the row's stops and so no part of the text, "length" where it is the last
    one allowed; else None. logprob: by the model's own distribution, before temperature and the like; None
    unless asked for. top: the likeliest (id, log-probability), the likeliest first.
    """

    id: int
    end: Literal["stop", "length"] | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class _Row:
    """A request at work. context: what the model sees; unread: how much of its end the cache lacks.

    beginning: what another row has read of the context; None once it is in the cache.
    """

    def __init__(
        self, key: int, request: Request, chooser: Chooser, limit: int, kept: KeptRows | None
    ) -> None:
        self.key, self.request, self.chooser, self.limit = key, request, chooser, limit
        self.context = _fit(list(request.ids), limit)
        self.beginning = None if kept is None else kept.find(self.context)
        self.unread = len(self.context) - (0 if self.beginning is None else self.beginning.length)
        self.made = 0

    def push(self, token: int) -> Literal["stop", "length"] | None:
        """Takes the next token; returns why the row has ended, if it has."""
        if token in self.request.stops:
            return "stop"
        self.made += 1
        full = len(self.context) == self.limit
        self.context = _fit([*self.context, token], self.limit)
        self.unread = len(self.context) if full else 1
        return "length" if self.made == self.request.max_new_tokens else None


class Session:
    """Generates for several requests at once: `add` them, then `step` until all have ended.

    When a row's context is full, its newer half is kept and read again. What a row gets depends on its own
    request alone, as far as the rounding of sums allows: which rows are beside it, and whether there is a
    cache, changes no greedily chosen token in fp32 unless two logits are equal to the last digits.

    never: (vocab,) bool, ids that are not chosen. use_cache: False computes all positions for each token.
    keep: what rows have read is kept when they end, for those that begin alike; as much as one context has.
    Under tensor parallelism all ranks make the same calls, and get the same tokens.
    """

    def __init__(
        self, model: Model, *, never: Tensor | None = None, use_cache: bool = True, keep: bool = False
    ) -> None:
        self._model, self._never = model, never
        self._device = next(model.parameters()).device
        self._cache = model.new_cache() if use_cache else None
        self._kept = KeptRows(model.context_length) if keep and self._cache is not None else None
        # The first self._cached of these rows are those of the cache; nothing of the others is in it.
        self._rows: list[_Row] = []
        self._cached = self._keys = 0

    def __len__(self) -> int:
        """Rows at work."""
        return len(self._rows)

    def add(self, request: Request) -> int:
        """Begins a row; returns its key, the next of 0, 1, .... Its prompt is read in the next step."""
        if not request.ids or request.max_new_tokens < 1:
            raise ValueError("a prompt has at least one id, and at least one token is made")
        chooser = Chooser(request.sampling, request.ids, self._model.vocab_size, self._device)
        self._rows.append(_Row(self._keys, request, chooser, self._model.context_length, self._kept))
        self._keys += 1
        return self._keys - 1

    @torch.inference_mode()
    def drop(self, key: int) -> None:
        """Ends a row before its time."""
        row = next(row for row in self._rows if row.key == key)
        self._keep(row, row.context)
        self._remove(row)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Token]]:
        """One token for each row, with the row's key; rows that end with it are dropped.

        Raises UserError where the model's logits are no numbers.
        """
        if not self._rows:
            return []
        logits = self._logits()
        allowed = logits if self._never is None else logits.masked_fill(self._never, float("-inf"))
        chosen = choose(allowed, [row.chooser for row in self._rows])
        rows = list(self._rows)
        found = []
        for row, token in zip(rows, self._tokens(logits, chosen), strict=True):
            read = row.context
            end = row.push(token.id)
            found.append((row.key, token if end is None else replace(token, end=end)))
            if end is not None:
                self._keep(row, read)
                self._remove(row)
            elif row.unread == len(row.context):
                self._uncache(row)
        return found

    def _logits(self) -> Tensor:
        """(rows, vocab) fp32: of what follows each row's context."""
        if self._cache is None:
            contexts = [torch.tensor([row.context], device=self._device) for row in self._rows]
            return torch.cat([self._model.logits(context) for context in contexts])
        parts = []
        for first, rows in self._passes():
            width = max(row.unread for row in rows)
            unread = [row.context[-row.unread :] + [0] * (width - row.unread) for row in rows]
            cached = self._cache.rows([row.unread for row in rows], first)
            parts.append(self._model.logits(torch.tensor(unread, device=self._device), cached))
        self._cached = len(self._rows)
        return torch.cat(parts)

    def _passes(self) -> Iterator[tuple[int, list[_Row]]]:
        """The rows that are computed together, in order, and the place of the first of them.

        Those in the cache, which lack one token each, are one pass; the others are ordered by length.
        """
        assert self._cache is not None
        if self._cached:
            yield 0, self._rows[: self._cached]
        for place in range(self._cached, len(self._cache.lengths)):
            self._cache.clear(place)
        self._rows[self._cached :] = sorted(self._rows[self._cached :], key=lambda row: row.unread)
        for place, row in enumerate(self._rows[self._cached :], self._cached):
            if row.beginning is not None:
                self._cache.restore(place, *row.beginning)
                row.beginning = None
        first = self._cached
        for stop in range(first + 1, len(self._rows) + 1):
            longer = self._rows[stop].unread if stop < len(self._rows) else math.inf
            if (stop + 1 - first) * longer > READ_TOKENS:
                yield first, self._rows[first:stop]
                first = stop

    def _tokens(self, logits: Tensor, chosen: Tensor) -> list[Token]:
        """The chosen tokens on the host, with log-probabilities where any row wants them."""
        wanted = [row.request.logprobs for row in self._rows]
        most = max((number for number in wanted if number is not None), default=None)
        if most is None:
            return [_token(id) for id in chosen.tolist()]
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(-1, chosen.clamp(min=0)[:, None])[:, 0].tolist()
        best = logprobs.topk(min(most, logprobs.shape[-1]))
        lists = zip(chosen.tolist(), wanted, own, best.indices.tolist(), best.values.tolist(), strict=True)
        return [
            _token(id) if number is None else _token(id, logprob, zip(ids[:number], values, strict=False))
            for id, number, logprob, ids, values in lists
        ]

    def _keep(self, row: _Row, context: list[int]) -> None:
        """Keeps what the cache holds of a row, which is of this context."""
        place = self._rows.index(row)
        if self._kept is not None and self._cache is not None and place < self._cached:
            self._kept.put(context[: self._cache.lengths[place]], self._cache.keep(place))

    def _remove(self, row: _Row) -> None:
        """Takes a row out."""
        self._uncache(row)
        self._rows.remove(row)

    def _uncache(self, row: _Row) -> None:
        """Takes a row out of the cache, whose last row takes its place."""
        place = self._rows.index(row)
        if place >= self._cached:
            return
        self._cached -= 1
        if place < self._cached and self._cache is not None:
            self._cache.move(self._cached, place)
        self._rows[place], self._rows[self._cached] = self._rows[self._cached], row


def _token(id: int, logprob: float | None = None, top: Iterable[tuple[int, float]] = ()) -> Token:
    if id < 0:
        raise UserError(
            "the model computes logits that are not finite, so no token can be chosen; its training has "
            "diverged: take an earlier checkpoint"
        )
    return Token(id, logprob=logprob, top=tuple(top))


def _fit(context: list[int], limit: int) -> list[int]:
    """All of the context, or its newer half where it is longer than the model can see."""
    return context if len(context) <= limit else context[-(limit // 2) :]


Made = TypeVar("Made", covariant=True)


class Steps(Protocol[Made]):
    """A session: how many rows are at work, and what its next step makes for each, with the row's key."""

    def __len__(self) -> int: ...

    def step(self) -> Iterable[tuple[int, Made]]:
        """See `Session.step`."""
        ...


def in_turns(
    session: Steps[Made], lengths: Sequence[int], add: Callable[[int], int], rows: int
) -> Iterator[tuple[int, Made]]:
    """What a session makes of many prompts, each with the prompt's number, as it comes.

    lengths: of the prompts. add: begins the row of a number, and returns its key. rows: how many are at work
    at once, the shortest first; the next begins as one ends.
    """
    numbers: dict[int, int] = {}
    waiting = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    while waiting or len(session):
        while waiting and len(session) < rows:
            number = waiting.pop()
            numbers[add(number)] = number
        for key, made in session.step():
            yield numbers[key], made


def generate_batch(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stops: Collection[int],
    rows: int = 16,
    never: Tensor | None = None,
    use_cache: bool = True,
    logprobs: int | None = None,
) -> Iterator[tuple[int, Token]]:
    """(number of the prompt, token) of each of them as they come; see `in_turns` and `Request`.

    Each prompt has the seed of `sampling`, so that its sample is the same in any company.
    """
    session = Session(model, never=never, use_cache=use_cache)

    def add(number: int) -> int:
        return session.add(Request(prompts[number], max_new_tokens, sampling, stops, logprobs))

    return in_turns(session, [len(prompt) for prompt in prompts], add, rows)


def generate(
    model: Model,
    prompt: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling,
    *,
    stops: Collection[int],
    use_cache: bool = True,
    never: Tensor | None = None,
) -> Iterator[int]:
    """Ids that continue `prompt`, one by one, up to one of `stops` (not given out) or `max_new_tokens`."""
    batch = generate_batch(
        model, [prompt], max_new_tokens, sampling, stops=stops, use_cache=use_cache, never=never
    )
    yield from (token.id for _, token in batch if token.end != "stop")
