"""One rank asks, all ranks compute: who evaluates by tasks is rank 0 alone, the others follow it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from llmkit.errors import from_report, to_report
from llmkit.evaluation.answers import Prompt, answers, rows_at_once
from llmkit.evaluation.score import Question, Score, Scorer, loglikelihoods

Result = TypeVar("Result")
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
        scores: dict[int, Score] = {}
        for start in range(0, len(order), PORTION):
            numbers = order[start : start + PORTION]
            portion = [questions[i] for i in numbers]
            self._scorer.mesh.broadcast_text(json.dumps({"score": portion}))
            self.together = True
            scores.update(zip(numbers, loglikelihoods(self._scorer, portion), strict=True))
            self.together = False
            done(len(numbers))
        return [scores[i] for i in range(len(questions))]

    def answers(
        self, prompts: Sequence[Prompt], done: Callable[[int], object] = lambda count: None
    ) -> list[str]:
        """See `llmkit.evaluation.answers.answers`. done: called after each portion, with its size."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
        portion = WAVES * rows_at_once(self._scorer) * self._scorer.mesh["data"].size
        found: dict[int, str] = {}
        for start in range(0, len(order), portion):
            numbers = order[start : start + portion]
            asked = [prompts[i] for i in numbers]
            self._scorer.mesh.broadcast_text(json.dumps({"answer": asked}))
            self.together = True
            found.update(zip(numbers, answers(self._scorer, asked), strict=True))
            self.together = False
            done(len(numbers))
        return [found[i] for i in range(len(prompts))]


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
            answers(scorer, [Prompt(*prompt) for prompt in message["answer"]])
        elif "failed" in message:
            raise from_report(message["failed"])
        else:
            return
