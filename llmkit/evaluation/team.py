"""One rank asks, all ranks compute: who evaluates by tasks is rank 0 alone, the others follow it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from llmkit.errors import from_report, to_report
from llmkit.evaluation.score import Question, Score, Scorer, loglikelihoods

Result = TypeVar("Result")
PORTION = 4096
"""Questions that are sent at once."""


class Lead:
    """What rank 0 uses of the model; each method lets all ranks compute."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.context_length = scorer.context_length
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
        elif "failed" in message:
            raise from_report(message["failed"])
        else:
            return
