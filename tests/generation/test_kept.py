"""Rows that begin as others did read the rest alone, and give the same tokens and log-probabilities."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.generation.kept import KeptRows
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import Request, Session, Token
from llmkit.model.cache import Kept
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model

MODELS = {
    "llama": LLAMA_STYLE,
    "gpt2": GPT2_STYLE,
    "window": replace(LLAMA_STYLE, sliding_window=7, layer_types=("sliding_attention", "full_attention")),
    "looks back": replace(LLAMA_STYLE, key_shift=0.5, bigram_embedding=50, value_embeddings=True),
}
PROMPT = [5, 3, 8, 1, 9, 2, 7, 7, 4]


def kept(length: int, *, looks_back: bool = False) -> Kept:
    token = torch.zeros(int(looks_back), 1)
    return Kept(length, [torch.zeros(2, 1, length, 1, 1)], [torch.zeros(0, 1, 1, 1)], token)


def run(session: Session, prompt: list[int], count: int, seed: int = 0) -> list[Token]:
    key = session.add(Request(prompt, count, Sampling(temperature=0.7, seed=seed), logprobs=3))
    found = []
    while len(session):
        found += [token for each, token in session.step() if each == key]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_tokens_and_log_probabilities_are_those_of_a_fresh_session(name, monkeypatch):
    model = random_model(MODELS[name]).eval()
    session, read, logits = Session(model, keep=True), [], model.logits
    monkeypatch.setattr(
        model, "logits", lambda ids, cache=None: read.append(ids.shape[1]) or logits(ids, cache)
    )
    first = run(session, PROMPT, 6)
    answer = [token.id for token in first]
    prompts = {
        "goes on": [*PROMPT, *answer, 11, 12],
        "turns off": [*PROMPT, *answer[:2], 3, 4, 5],
        "the same": PROMPT,
        "another": [1, 2, 3],
    }
    for number, (case, prompt) in enumerate(prompts.items()):
        fresh = run(Session(model), prompt, 5, seed=number)
        read.clear()
        again = run(session, prompt, 5, seed=number)
        assert [token.id for token in again] == [token.id for token in fresh], case
        for one, other in zip(again, fresh, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert [value for _, value in one.top] == pytest.approx([v for _, v in other.top], abs=1e-5)
        expected = {"goes on": 3, "turns off": 3, "the same": 1, "another": 3}
        if name == "looks back":  # what precedes the newest position is not known any more
            expected |= {"turns off": len(prompts["turns off"]), "the same": len(PROMPT)}
        assert read[0] == expected[case], case


def test_rows_with_and_without_a_beginning_are_read_together():
    model = random_model(LLAMA_STYLE).eval()
    session = Session(model, keep=True)
    answer = [token.id for token in run(session, PROMPT, 4)]
    prompts = [[*PROMPT, *answer, 1], [3, 1], [*PROMPT, 9, 9], [*PROMPT, *answer, 2, 2, 2]]
    wanted = [[token.id for token in run(Session(model), prompt, 6)] for prompt in prompts]
    keys = [session.add(Request(p, 6, Sampling(temperature=0.7))) for p in prompts]
    found: dict[int, list[int]] = {key: [] for key in keys}
    while len(session):
        for key, token in session.step():
            found[key].append(token.id)
    assert [found[key] for key in keys] == wanted


def test_a_context_that_was_cut_is_gone_on_with():
    """When it is full its newer half is read again: what is kept is of that half."""
    model = random_model(LLAMA_STYLE).eval()
    session = Session(model, keep=True)
    long = [number % 100 for number in range(60)]
    answer = [token.id for token in run(session, long, 30)]
    again = [*long, *answer]
    wanted = [token.id for token in run(Session(model), again, 8)]
    assert [token.id for token in run(session, again, 8)] == wanted


def test_a_row_that_is_dropped_is_kept_as_far_as_it_was_read():
    model = random_model(LLAMA_STYLE).eval()
    session = Session(model, keep=True)
    key = session.add(Request(PROMPT, 9, Sampling(temperature=0.0)))
    session.drop(session.add(Request([4, 4], 9, Sampling())))  # of which nothing was read
    made = [token.id for _ in range(3) for _, token in session.step()]
    session.drop(key)
    beginning = session._kept.find([*PROMPT, *made, 5])
    assert beginning.length == len(PROMPT) + 2 and len(session._kept) == 1


def test_there_is_room_for_as_many_positions_as_a_context_has():
    rows = KeptRows(10)
    rows.put([1, 2, 3], kept(3))
    rows.put([1, 2, 3, 4], kept(4))
    assert len(rows) == 1, "the longer one has all of the other"
    rows.put([5, 6, 7], kept(3))
    assert rows.find([1, 2, 9]).length == 2  # used: the other goes first
    rows.put([8, 8, 8, 8], kept(4))
    assert rows.find([5, 6, 7, 1]) is None and rows.find([1, 2, 3, 4, 5]).length == 4
    rows.put(list(range(11)), kept(11))
    assert len(rows) == 0


def test_one_id_is_always_left_to_be_read():
    rows = KeptRows(10)
    rows.put([1, 2, 3], kept(3))
    assert rows.find([1, 2, 3]).length == 2 and rows.find([1]) is None and rows.find([2, 1]) is None
    rows.put([4, 5], kept(2, looks_back=True))
    assert rows.find([4, 5]) is None and rows.find([4, 5, 6]).length == 2
