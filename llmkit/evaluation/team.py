"""One rank asks, all ranks compute: who evaluates by tasks is rank 0 alone, the others follow it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from llmkit.errors import from_report, to_report
from llmkit.evaluation.answers import AnswerRequest, answers, rows_at_once
from llmkit.evaluation.score import Question, Score, Scorer, loglikelihoods

Result = TypeVar("Result")
Asked = TypeVar("Asked")
Found = TypeVar("Found")
PORTION = 4096
"""Questions that are sent at once."""
WAVES = 4
"""Prompts that are sent at once, as a multiple of those that are answered at once."""


class Lead:
    """What rank 0 uses of the model; each method lets all ranks compute."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.context_length, self.text = scorer.context_length, scorer.text
        self.together = False
        """Whether all ranks compute at this moment; what ends that ends it on all of them."""

    def loglikelihoods(
        self, questions: Sequence[Question], done: Callable[[int], object] = lambda count: None
    ) -> list[Score]:
        """See `llmkit.evaluation.score.loglikelihoods`. done: called after each portion, with its size."""
        order = sorted(range(len(questions)), key=lambda i: -sum(map(len, questions[i])))
        return self._in_portions("score", questions, order, PORTION, loglikelihoods, done)

    def answers(
        self, prompts: Sequence[AnswerRequest], done: Callable[[int], object] = lambda count: None
    ) -> list[str]:
        """See `llmkit.evaluation.answers.answers`. done: called after each portion, with its size."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
        portion = WAVES * rows_at_once(self._scorer) * self._scorer.mesh["data", "context"].size
        return self._in_portions("answer", prompts, order, portion, answers, done)

    def _in_portions(
        self,
        kind: str,
        asked: Sequence[Asked],
        order: Sequence[int],
        size: int,
        compute: Callable[[Scorer, Sequence[Asked]], list[Found]],
        done: Callable[[int], object],
    ) -> list[Found]:
        """What all ranks compute for each of `asked`, `size` at a time in this order; kind: see `_follow`."""
        found: dict[int, Found] = {}
        for start in range(0, len(order), size):
            numbers = order[start : start + size]
            portion = [asked[i] for i in numbers]
            self._scorer.mesh.broadcast_text(json.dumps({kind: portion}))
            self.together = True
            found.update(zip(numbers, compute(self._scorer, portion), strict=True))
            self.together = False
            done(len(numbers))
        return [found[i] for i in range(len(asked))]


def led(scorer: Scorer, work: Callable[[Lead], Result]) -> Result | None:
    """Collective. The result of `work` on rank 0, which alone runs it; its errors are raised on all ranks.

    An error that is no user's mistake or fault of the run is a RunFault on the other ranks.
    """
    mesh = scorer.mesh
    if mesh.rank > 0:
        _follow(scorer)
        return None
    lead = Lead(scorer)
    try:
        result = work(lead)
    except Exception as error:
        if not lead.together:  # else the others have failed with this rank, or will find it gone
            mesh.broadcast_text(json.dumps({"failed": to_report(error)}))
        raise
    mesh.broadcast_text("{}")
    return result


def _follow(scorer: Scorer) -> None:
    """Computes what rank 0 asks for until it has its result."""
    while True:
        message = json.loads(scorer.mesh.broadcast_text(""))
        if "score" in message:
            loglikelihoods(scorer, [Question(*question) for question in message["score"]])
        elif "answer" in message:
            answers(scorer, [AnswerRequest(*prompt) for prompt in message["answer"]])
        elif "failed" in message:
            raise from_report(message["failed"])
        else:
            return
