"""The needle test: its texts, and its figures against what the model computes of each text by itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.errors import UserError
from llmkit.evaluation.haystack import needle
from llmkit.evaluation.hub_text import HubText
from llmkit.evaluation.needle import Cell, Maker, NeedleTest, run_needles
from llmkit.evaluation.score import Score, Scorer
from llmkit.evaluation.team import Lead
from llmkit.parallel.mesh import Mesh
from tests.evaluation import toys
from tests.shapes import random_model


class Knows:
    """Stands for a model that reads the number, and answers if it is in the last `sees` tokens."""

    def __init__(self, sees: int) -> None:
        self.sees, self.context_length, self.asked = sees, 200, []

    def loglikelihoods(self, questions):
        decode = toys.tokenizer().decode
        self.asked += questions
        seen = [decode(question.context[-self.sees :]) for question in questions]
        finds = [
            needle(decode(question.continuation).strip()) in text
            for question, text in zip(questions, seen, strict=True)
        ]
        return [Score(-0.25 if found else -8.0, found) for found in finds]


def test_texts_have_exactly_the_length_and_hide_the_number_at_the_depth():
    tokenizer = toys.tokenizer()
    maker = Maker(NeedleTest(trials=3), tokenizer)
    for length in (111, 160, 231):
        places = []
        for depth in (0.0, 0.5, 1.0):
            questions = maker.questions(length, depth)
            assert [len(each.context) + len(each.continuation) for each in questions] == [length] * 3
            numbers = [tokenizer.decode(each.continuation) for each in questions]
            texts = [tokenizer.decode(each.context) for each in questions]
            assert len(set(numbers)) == 3
            hidden = [needle(number.strip()) for number in numbers]
            assert all(text.count(it) == 1 for text, it in zip(texts, hidden, strict=True))
            assert all(each.context[0] == tokenizer.opening_id for each in questions)
            places.append([text.index(it) for text, it in zip(texts, hidden, strict=True)])
            assert questions == Maker(NeedleTest(trials=3), tokenizer).questions(length, depth)
        whole = zip(*places, strict=True)
        if length < 200:  # in a small text a half is nearest to one of its ends
            assert all(first <= second <= third for first, second, third in whole)
        else:
            assert all(first < second < third for first, second, third in whole)


def test_what_a_model_sees_decides_the_table():
    test, told = NeedleTest((120, 200), (0.0, 1.0), trials=4), []
    lead = Knows(sees=110)
    cells = run_needles(test, lead, toys.tokenizer(), lambda length, cells: told.append((length, len(cells))))
    tokens = [sum(len(each.continuation) for each in lead.asked[k : k + 4]) for k in (0, 4, 8, 12)]
    assert [(cell.length, cell.depth, cell.trials) for cell in cells] == [
        (120, 0.0, 4), (120, 1.0, 4), (200, 0.0, 4), (200, 1.0, 4),
    ]  # fmt: skip
    assert [cell.exact for cell in cells] == [0.0, 1.0, 0.0, 1.0]
    assert [cell.loss for cell in cells] == pytest.approx(
        [32 / tokens[0], 1 / tokens[1], 32 / tokens[2], 1 / tokens[3]]
    )
    assert told == [(120, 2), (200, 2)]


def test_figures_are_those_of_the_logits():
    model = random_model(replace(toys.shape(), max_position_embeddings=96)).eval()
    tokenizer = toys.tokenizer()
    scorer = Scorer.of_model(model, HubText(tokenizer), Mesh(), 300)
    test = NeedleTest((96,), (0.0, 0.7), trials=2, digits=1, filler=("a.",))
    cells = run_needles(test, Lead(scorer), tokenizer, lambda length, cells: None)
    for cell in cells:
        questions = Maker(test, tokenizer).questions(96, cell.depth)
        nats, tokens, exact = 0.0, 0, 0
        for context, answer in questions:
            likeliest = []
            for place, wanted in enumerate(answer):
                row = torch.tensor([[*context, *answer[:place]]])
                logits = model.logits(row).detach()[0].double()
                nats -= float(logits.log_softmax(-1)[wanted])
                likeliest.append(int(logits.argmax()))
            exact += likeliest == answer
            tokens += len(answer)
        assert cell == Cell(96, cell.depth, 2, exact / 2, pytest.approx(nats / tokens, rel=1e-5))


def test_lengths_are_chosen_by_what_the_model_reads():
    maker = Maker(NeedleTest(), toys.tokenizer())
    assert maker.lengths(4096) == (512, 1024, 2048, 4096)
    assert maker.lengths(400) == (200, 400)
    assert maker.lengths(150) == (150,)


@pytest.mark.parametrize(
    ("lengths", "context", "message"),
    [
        ((4000, 5000), 4096, "a text of 5,000 tokens is longer than the 4,096 that the model can read"),
        ((40, 4000), 4096, "in 40 tokens there is no room for the number and the question, which take"),
        ((), 60, "in 60 tokens there is no room"),
    ],
)
def test_lengths_that_cannot_be_are_refused(lengths, context, message):
    with pytest.raises(UserError, match=message):
        Maker(NeedleTest(lengths), toys.tokenizer()).lengths(context)
