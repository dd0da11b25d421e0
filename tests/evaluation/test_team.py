"""Rank 0 asks, all ranks compute; with several ranks: tests/evaluation/test_ranks.py."""

from __future__ import annotations

import pytest

from llmkit.evaluation import team
from llmkit.evaluation.score import Scorer, loglikelihoods
from llmkit.evaluation.team import Lead, led
from llmkit.parallel.mesh import Mesh
from tests.evaluation.test_score import MODEL, TEXT, questions

SCORER = Scorer.of_model(MODEL, TEXT, Mesh(), tokens=100)


def test_a_process_alone_gets_what_its_work_gives_or_raises():
    asked = questions(5, 12)
    assert led(SCORER, lambda lead: lead.loglikelihoods(asked)) == loglikelihoods(SCORER, asked)
    with pytest.raises(ZeroDivisionError):
        led(SCORER, lambda lead: 1 // 0)


def test_questions_are_sent_in_portions_and_answered_in_their_order(monkeypatch):
    monkeypatch.setattr(team, "PORTION", 4)
    asked, done = questions(11, 12), []
    found = Lead(SCORER).loglikelihoods(asked, done.append)
    wanted = loglikelihoods(SCORER, asked)
    assert done == [4, 4, 3]
    assert [score.is_greedy for score in found] == [score.is_greedy for score in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)
    assert Lead(SCORER).loglikelihoods([]) == []
