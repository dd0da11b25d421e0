"""Log-likelihoods in batches, against log-probabilities of each question alone."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from llmkit.batch import Batch
from llmkit.errors import UserError
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.score import Question, Score, Scorer, loglikelihoods
from llmkit.model.gpt import GPT
from llmkit.parallel.mesh import Mesh
from tests.evaluation.toys import tokenizer
from tests.shapes import LLAMA_STYLE, random_model

MODEL = random_model(LLAMA_STYLE).eval()
TEXT = HubText(tokenizer())
LONGEST = LLAMA_STYLE.max_position_embeddings


def equal_scores(found: list[Score], wanted: list[tuple[float, bool]]) -> list[bool]:
    """Checks scores against sums of log-probabilities and whether all is likeliest; returns the latter."""
    torch.testing.assert_close(
        torch.tensor([score.log_likelihood for score in found]),
        torch.tensor([total for total, _ in wanted]),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    greedy = [score.is_greedy for score in found]
    assert greedy == [each for _, each in wanted]
    return greedy


def questions(count: int, longest: int) -> list[Question]:
    draw, size = random.Random(2), LLAMA_STYLE.vocab_size
    ids = [[draw.randrange(size) for _ in range(draw.randint(2, longest))] for _ in range(count)]
    return [Question(each[:cut], each[cut:]) for each in ids for cut in [draw.randrange(1, len(each))]]


@torch.no_grad()
def alone(model: GPT, question: Question) -> tuple[float, bool]:
    """By the logits of one row in fp64, each position's from a prefix of its own."""
    ids = [*question.context, *question.continuation][-(LONGEST + 1) :]
    total, greedy = 0.0, True
    for place in range(len(ids) - len(question.continuation), len(ids)):
        logits = model.logits(torch.tensor([ids[:place]]))[0].double()
        total += float(logits.log_softmax(-1)[ids[place]])
        greedy &= int(logits.argmax()) == ids[place]
    return total, greedy


def with_likeliest(model: GPT, question: Question) -> Question:
    """The question with the tokens that the model finds likeliest as its continuation."""
    ids = list(question.context)
    for _ in question.continuation:
        ids.append(int(model.logits(torch.tensor([ids[-LONGEST:]]))[0].argmax()))
    return Question(question.context, ids[len(question.context) :])


@pytest.mark.parametrize("limits", [{"tokens": 100}, {"tokens": 1}, {"tokens": 1, "rows": 5}])
def test_each_question_is_scored_as_if_it_were_alone(limits):
    asked = questions(11, 30) + [Question(q.context, q.continuation[:9]) for q in questions(4, 90)]
    asked += [with_likeliest(MODEL, question) for question in questions(3, 12)]
    found = loglikelihoods(Scorer.of_model(MODEL, TEXT, Mesh(), **limits), asked)
    wanted = [alone(MODEL, question) for question in asked]
    greedy = equal_scores(found, wanted)
    assert greedy[-3:] == [True] * 3 and not all(greedy)


def test_batches_hold_what_was_asked_for_and_lengths_are_multiples():
    shapes: list[tuple[int, ...]] = []
    scorer = Scorer.of_model(MODEL, TEXT, Mesh(), tokens=60)

    def score(batches):
        seen = list(batches)
        shapes.extend(tuple(batch.tokens.shape) for batch in seen)
        return scorer.score(seen)

    asked = questions(20, 30)
    found = loglikelihoods(replace(scorer, score=score, multiple=4), asked)
    assert all(rows * (length - 3) <= 60 and length % 4 == 0 for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) == 20 and shapes == sorted(shapes, key=lambda shape: -shape[1])
    plain = loglikelihoods(scorer, asked)
    for one, other in zip(found, plain, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-5)


def test_answers_that_differ_in_their_last_token_are_read_once_and_scored_as_if_alone():
    asked = []
    for number, question in enumerate(questions(6, 20)):
        choices = [[*question.continuation[:-1], last] for last in range(number, 5 * number + 2)]
        asked += [Question(question.context, choice) for choice in choices]
    asked += [with_likeliest(MODEL, each) for each in asked[::7]]
    random.Random(3).shuffle(asked)
    assert len(asked) > 60
    read: list[torch.Tensor] = []
    scorer = Scorer.of_model(MODEL, TEXT, Mesh(), tokens=60)

    def score(batches):
        seen = list(batches)
        read.extend(batch.tokens for batch in seen)
        return scorer.score(seen)

    found = loglikelihoods(replace(scorer, score=score), asked)
    wanted = [alone(MODEL, question) for question in asked]
    greedy = equal_scores(found, wanted)
    assert any(greedy)
    rows = sum(map(len, read))
    distinct = {tuple([*each.context, *each.continuation][:-1]) for each in asked}
    assert len(distinct) <= rows <= len(distinct) + 2 < len(asked) / 2, "of more than 16 some are read twice"
    separate = loglikelihoods(replace(scorer, shares=False), asked)
    assert [each.is_greedy for each in separate] == greedy


def test_nothing_is_asked_or_too_much():
    scorer = Scorer.of_model(MODEL, TEXT, Mesh(), tokens=60)
    assert loglikelihoods(scorer, []) == []
    with pytest.raises(UserError, match=f"has 49 tokens, more than the {LONGEST} that the model can see"):
        loglikelihoods(scorer, [Question([1], [2] * 49)])


def test_what_is_called_before_a_batch_may_end_it_and_the_model_is_as_before():
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError

    scorer = replace(Scorer.of_model(MODEL, TEXT, Mesh(), tokens=1), before_batch=stop)
    with pytest.raises(ZeroDivisionError):
        loglikelihoods(scorer, questions(5, 10))
    assert not MODEL.training and not MODEL.head.counts_likeliest
    MODEL(Batch(torch.tensor([[1, 2]]), torch.tensor([[2, 3]])))
