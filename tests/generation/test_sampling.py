"""Choosing tokens."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from llmkit.errors import UserError
from llmkit.generation.sampling import Chooser, Sampling, choose

CPU = torch.device("cpu")


def choices(sampling: Sampling, logits: torch.Tensor, seen=()) -> Counter[int]:
    """What comes of 2000 choices from the same logits; in a batch with others that choose otherwise."""
    others = [Sampling(temperature=0.0), Sampling(temperature=3.0, top_k=1), Sampling(repetition_penalty=1.5)]
    found: Counter[int] = Counter()
    chooser = Chooser(sampling, seen, len(logits), CPU)
    beside = [Chooser(other, [0], len(logits), CPU) for other in others]
    for _ in range(2000):
        if chooser.seen is not None:
            chooser = Chooser(sampling, seen, len(logits), CPU)  # it has not seen what it chose
        found[int(choose(logits.expand(4, -1), [chooser, *beside])[0])] += 1
    return found


def test_temperature_zero_takes_the_likeliest():
    for temperature in (0.0, 1e-42, 1e-6):
        assert choices(Sampling(temperature=temperature), torch.tensor([0.0, 2.0, 1.9])) == {1: 2000}


def test_probabilities_are_those_of_the_tempered_softmax():
    logits = torch.tensor([1.0, 0.0, -1.0])
    found = choices(Sampling(temperature=2.0), logits)
    wanted = (logits / 2.0).softmax(0)
    assert [found[i] / 2000 for i in range(3)] == pytest.approx(wanted.tolist(), abs=0.04)


def test_top_k_and_top_p_cut_the_tail():
    logits = torch.tensor([0.5, 0.25, 0.15, 0.1]).log()
    assert set(choices(Sampling(temperature=1.0, top_k=2), logits)) == {0, 1}
    assert set(choices(Sampling(temperature=1.0, top_p=0.5), logits)) == {0}
    assert set(choices(Sampling(temperature=1.0, top_p=0.76), logits)) == {0, 1, 2}
    assert set(choices(Sampling(temperature=1.0, top_p=1e-9), logits)) == {0}


def test_repetition_penalty_lowers_seen_tokens_whatever_their_sign():
    penalty = Sampling(temperature=0.0, repetition_penalty=2.0)
    assert choices(penalty, torch.tensor([3.0, 2.0, 1.0]), seen=[0]) == {1: 2000}
    assert choices(penalty, torch.tensor([-1.0, -1.5, -9.0]), seen=[0]) == {1: 2000}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_k": -1}, "top-k"),
        ({"top_p": 0.0}, "top-p"),
        ({"top_p": 1.5}, "top-p"),
        ({"repetition_penalty": 0.0}, "repetition-penalty"),
        ({"repetition_penalty": 1e-40}, "repetition-penalty"),
        ({"repetition_penalty": float("inf")}, "repetition-penalty"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": float("nan")}, "top-p"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_settings_out_of_range(wrong, says):
    with pytest.raises(UserError, match=says):
        Sampling(**wrong)


def test_a_row_chooses_alone_what_it_chooses_in_company():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 9, 300, generator=generator) * 3
    ways = [
        Sampling(temperature=0.0, repetition_penalty=1.3), Sampling(1.0, seed=3),
        Sampling(2.0, top_k=40, seed=4),
        Sampling(0.7, top_p=0.6, seed=5), Sampling(1.3, 30, 0.9, 1.2, seed=6),
    ]  # fmt: skip
    together = [Chooser(way, [1, 2], 300, CPU) for way in ways]
    rows = torch.stack([choose(step, together) for step in logits.transpose(0, 1)], 1)
    for number, way in enumerate(ways):
        alone = Chooser(way, [1, 2], 300, CPU)
        assert [int(choose(step[None], [alone])) for step in logits[number]] == rows[number].tolist()


def test_what_has_no_probability_is_never_chosen(monkeypatch):
    logits = torch.full((1, 50), float("-inf"))
    logits[0, [7, 20]] = torch.tensor([1.0, 0.0])
    for number in (0.0, 1.0 - 2.0**-53):
        monkeypatch.setattr(Chooser, "draw", lambda self, number=number: number)
        for way in (Sampling(1.0), Sampling(1.0, top_k=30), Sampling(1.0, top_p=0.9999)):
            assert int(choose(logits, [Chooser(way, [], 50, CPU)])) == (20 if number else 7)


def test_logits_that_are_no_numbers_are_marked():
    logits = torch.zeros(3, 5)
    logits[0, 2], logits[1, 3] = float("nan"), float("inf")
    for temperature in (0.0, 1.0):
        found = choose(logits, [Chooser(Sampling(temperature), [], 5, CPU) for _ in range(3)])
        assert found[:2].tolist() == [-1, -1] and found[2] >= 0
