"""Texts that hide a number: exact lengths, whole sentences, the number where it should be."""

from __future__ import annotations

import random

import pytest

from llmkit.evaluation.haystack import FILLER, QUESTION, needle, record, sentences, spread


@pytest.mark.parametrize("room", [0, 1, 7, 33, 34, 240, 1001])
@pytest.mark.parametrize("depth", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("first", [0, 3])
def test_filler_is_as_long_as_asked_and_parted_at_the_end_of_a_sentence(room, depth, first):
    before, behind = spread(FILLER, room, depth, first)
    whole = "".join([*before, *behind])
    endless = "".join([*FILLER[first:], *FILLER[:first]]) * 9
    assert len(whole) == room
    assert 0 <= endless.find(whole) < max(map(len, FILLER))
    ends = [0, room] + [place + 1 for place, letter in enumerate(whole) if letter == "."]
    split = len("".join(before))
    assert split in ends
    assert abs(split - depth * room) == min(abs(end - depth * room) for end in ends)


def test_filler_of_ids_is_the_same_as_of_characters():
    ids = [[*map(ord, part)] for part in FILLER]
    for depth in (0.0, 0.4, 1.0):
        of_text, of_ids = spread(FILLER, 130, depth, 2), spread(ids, 130, depth, 2)
        assert [["".join(map(chr, part)) for part in parts] for parts in of_ids] == [*map(list, of_text)]


def test_a_record_asks_for_the_number_that_it_hides():
    lengths = (150, 256, 1000)
    found = [record(random.Random(seed), length) for seed, length in enumerate(lengths)]
    for length, (prompt, answer) in zip(lengths, found, strict=True):
        assert len(prompt) + len(answer) == length
        assert prompt.count(needle(answer.strip())) == 1 and prompt.endswith(QUESTION)
        assert answer[0] == " " and answer[1:].isdigit() and len({*answer[1:]}) == 5
    assert len({answer for _, answer in found}) == 3
    assert record(random.Random(1), 256) == found[1]
    prompt, answer = record(random.Random(1), 10)  # without filler where there is no room
    assert prompt == needle(answer.strip()) + QUESTION


def test_a_text_is_cut_into_sentences_and_nothing_is_lost():
    text = "One is 1.5 long. Is two? Yes!\nA line\n\nThe end"
    assert sentences(text) == ["One is 1.5 long.", " Is two?", " Yes!", "\n", "A line\n", "\n", "The end"]
    assert "".join(sentences(text)) == text
    assert sentences("") == []
