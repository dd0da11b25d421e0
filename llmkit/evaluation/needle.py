"""The needle test: does a model find a number in a text of some length, at some depth of it?"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import UserError
from llmkit.evaluation import haystack
from llmkit.evaluation.score import Question, Score
from llmkit.evaluation.team import Lead

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
HALVINGS = 4
"""Lengths that are tried if none are named: what the model can read, halved so many times less one."""


@dataclass(frozen=True)
class NeedleTest:
    """What to ask.

    lengths: tokens of a text with its question and answer; () = chosen by what the model can read. depths:
    where the number stands, 0 = at the beginning, 1 = before the question. trials: texts for each of both.
    digits: of the number. filler: sentences around it. seed: of the numbers.
    """

    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = DEPTHS
    trials: int = 10
    digits: int = haystack.DIGITS
    filler: tuple[str, ...] = haystack.FILLER
    seed: int = 0


class Cell(NamedTuple):
    """What was found at a length and a depth.

    exact: share of the texts in which each token of the answer is the likeliest one, as greedy decoding would
    write it. loss: nats a token of the answer.
    """

    length: int
    depth: float
    trials: int
    exact: float
    loss: float


class Maker:
    """Makes the texts of a test as token ids, by the tokenizer of a model."""

    def __init__(self, test: NeedleTest, tokenizer: Tokenizer) -> None:
        self._test, self._tokenizer = test, tokenizer
        self._filler = [ids for part in test.filler if (ids := self._ids(part))]
        if not self._filler:
            raise UserError("needle test: the filler has no token; name a file with text")
        self._question = self._ids(haystack.QUESTION)
        self._opening = [tokenizer.opening_id]

    def lengths(self, context_length: int) -> tuple[int, ...]:
        """The lengths to test. Raises UserError for one that the model cannot read, or that is too short."""
        asked = self._test.lengths
        if not asked:
            halved = [context_length >> n for n in reversed(range(HALVINGS))]
            enough = (length for length in halved if 2 * length >= 3 * self._least(length))
            asked = tuple(enough) or (context_length,)
        for length in asked:
            if length > context_length:
                raise UserError(
                    f"needle test: a text of {length:,} tokens is longer than the {context_length:,} that "
                    "the model can read; choose shorter ones, or train it on longer rows "
                    "(docs/long-context.md)"
                )
            if length < (least := self._least(length)):
                raise UserError(
                    f"needle test: in {length:,} tokens there is no room for the number and the question, "
                    f"which take {least:,}; choose longer texts"
                )
        return asked

    def questions(self, length: int, depth: float) -> list[Question]:
        """The texts of a length and a depth, all of exactly this length with their answers."""
        return [
            self._text(length, depth, number, first)
            for first, number in enumerate(self._numbers_of(length, depth))
        ]

    def _numbers_of(self, length: int, depth: float) -> list[str]:
        draw = random.Random(f"{self._test.seed} {length} {depth}")
        return [haystack.draw_number(draw, self._test.digits) for _ in range(self._test.trials)]

    def _text(self, length: int, depth: float, number: str, first: int) -> Question:
        hidden, answer = self._ids(haystack.needle(number)), self._ids(haystack.answer(number))
        before, behind = haystack.spread(self._filler, length - self._without_filler(number), depth, first)
        parts = [self._opening, *before, hidden, *behind, self._question]
        return Question([id for part in parts for id in part], answer)

    def _least(self, length: int) -> int:
        """The least length with room for each number that is hidden in texts of this length."""
        numbers = [number for depth in self._test.depths for number in self._numbers_of(length, depth)]
        return max(map(self._without_filler, numbers))

    def _without_filler(self, number: str) -> int:
        """Tokens of a text without filler."""
        parts = (haystack.needle(number), haystack.answer(number))
        return len(self._opening) + len(self._question) + sum(len(self._ids(part)) for part in parts)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).tolist()
        return ids


def run_needles(
    test: NeedleTest, lead: Lead, tokenizer: Tokenizer, done: Callable[[int, Sequence[Cell]], object]
) -> list[Cell]:
    """What the model finds at each length and depth. On rank 0, inside `team.led`.

    done: called after each length, with it and its cells. Raises UserError as `Maker`.
    """
    maker, cells = Maker(test, tokenizer), list[Cell]()
    for length in maker.lengths(lead.context_length):
        asked = {depth: maker.questions(length, depth) for depth in test.depths}
        scores = iter(lead.loglikelihoods([each for questions in asked.values() for each in questions]))
        found = [
            _cell(length, depth, questions, [next(scores) for _ in questions])
            for depth, questions in asked.items()
        ]
        done(length, found)
        cells += found
    return cells


def _cell(length: int, depth: float, questions: Sequence[Question], scores: Sequence[Score]) -> Cell:
    tokens = sum(len(each.continuation) for each in questions)
    exact = sum(score.is_greedy for score in scores) / len(scores)
    return Cell(length, depth, len(scores), exact, -sum(score.log_likelihood for score in scores) / tokens)
