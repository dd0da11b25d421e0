"""Generation of rows together, with and without a cache."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from llmkit.errors import UserError
from llmkit.generation import session as session_module
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import Request, Session, generate, generate_batch
from tests.model.test_block import SHAPES
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model, randomise


def tokens(model, prompt, count, use_cache=True, stops=(), **sampling) -> list[int]:
    return list(generate(model, prompt, count, Sampling(**sampling), stops=stops, use_cache=use_cache))


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.0}, {"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}]
)
@pytest.mark.parametrize(
    "shape", [GPT2_STYLE, replace(LLAMA_STYLE, sliding_window=7)], ids=["gpt2", "modern"]
)
def test_the_cache_changes_no_token_also_past_the_end_of_the_context(shape, sampling):
    model = random_model(shape).eval()
    prompt = [3, 1, 4, 1, 5]
    count = 2 * shape.max_position_embeddings
    cached = tokens(model, prompt, count, **sampling)
    assert len(cached) == count
    assert cached == tokens(model, prompt, count, use_cache=False, **sampling)


def test_a_prompt_longer_than_the_context_is_continued_from_its_end():
    model = random_model(LLAMA_STYLE).eval()
    prompt = [n % 90 for n in range(100)]
    assert len(tokens(model, prompt, 5)) == 5


def test_generation_ends_at_the_stop_token():
    model = random_model(LLAMA_STYLE).eval()
    whole = tokens(model, [1, 2, 3], 20, temperature=0.0)
    assert tokens(model, [1, 2, 3], 20, temperature=0.0, stops={whole[6]}) == whole[: whole.index(whole[6])]


def test_the_seed_decides():
    model = random_model(LLAMA_STYLE).eval()
    assert tokens(model, [1], 30, seed=5) == tokens(model, [1], 30, seed=5)
    assert tokens(model, [1], 30, seed=5, temperature=2.0) != tokens(model, [1], 30, seed=6, temperature=2.0)


PROMPTS = [[5], [3, 1, 4, 1, 5, 9, 2, 6], [2, 7], list(range(60, 95)), [8, 8, 8], [90 - n for n in range(70)]]
"""The last one is longer than the context."""
COUNT = 52
"""Tokens made: more than a context."""
VARIANTS = {
    **{name: SHAPES[name] for name in ("gpt2", "everything", "value embeddings and biases")},
    "families": replace(
        LLAMA_STYLE,
        num_hidden_layers=3,
        sliding_window=6,
        layer_types=("sliding_attention", "full_attention", "sliding_attention"),
        sliding_rope_theta=100.0,
        partial_rotary_factor=0.6,
        qk_norm="full",
        norm_placement="post",
        attn_logit_softcapping=3.0,
        mlp="geglu",
    ),
    "windows": replace(LLAMA_STYLE, sliding_window=5, qk_norm=True),
}


@pytest.mark.parametrize("shape", VARIANTS.values(), ids=VARIANTS)
def test_rows_that_come_and_go_together_get_the_tokens_that_each_gets_alone(shape, monkeypatch):
    model = randomise(random_model(shape)).eval()
    monkeypatch.setattr(session_module, "READ_TOKENS", 40)  # the prompts of one step need several passes
    for way in (Sampling(temperature=0.0), Sampling(temperature=1.5, repetition_penalty=1.2, seed=3)):
        alone = [list(generate(model, prompt, COUNT, way, stops=())) for prompt in PROMPTS]
        stop = alone[3][20]
        together: list[list[int]] = [[] for _ in PROMPTS]
        for number, token in generate_batch(model, PROMPTS, COUNT, way, stops={stop}, rows=4):
            if token.end != "stop":
                together[number].append(token.id)
        assert together == [row[: row.index(stop)] if stop in row else row for row in alone]
    session = Session(model)
    for prompt in PROMPTS:  # the first three end in the midst of the others
        session.add(Request(prompt, 3 if len(session) < 3 else COUNT, way))
    found: dict[int, list[int]] = {number: [] for number in range(len(PROMPTS))}
    while len(session):
        for key, token in session.step():
            found[key].append(token.id)
    assert list(found.values()) == [row[:3] if number < 3 else row for number, row in enumerate(alone)]


def test_a_context_of_three_tokens_is_read_again_each_time():
    model = random_model(replace(GPT2_STYLE, max_position_embeddings=3)).eval()
    for use_cache in (True, False):
        assert tokens(model, [1, 2, 3, 4, 5], 20, temperature=0.0, use_cache=use_cache) == tokens(
            model, [5], 20, temperature=0.0
        )


def test_a_row_can_be_dropped_and_others_added():
    model, way = random_model(LLAMA_STYLE).eval(), Sampling(temperature=0.0)
    alone = [tokens(model, prompt, 12, temperature=0.0) for prompt in PROMPTS]
    session, found = Session(model), {}
    keys = [session.add(Request(prompt, 12, way)) for prompt in PROMPTS[:3]]
    for step in range(20):
        if step == 4:
            session.drop(keys[0])
            session.add(Request(PROMPTS[3], 12, way))
        for key, token in session.step():
            found.setdefault(key, []).append(token.id)
    assert len(session) == 0 and session.step() == []
    assert found == {0: alone[0][:4], 1: alone[1], 2: alone[2], 3: alone[3]}


def test_log_probabilities_are_those_of_the_model():
    model = random_model(LLAMA_STYLE).eval()
    session = Session(model)
    session.add(Request([1, 2], 5, Sampling(temperature=2.0, top_k=3, seed=1), logprobs=2))
    session.add(Request([4], 5, Sampling(temperature=0.0), logprobs=0))
    session.add(Request([4], 5, Sampling(temperature=0.0)))
    ids = [1, 2]
    for _ in range(5):
        found = dict(session.step())
        wanted = model.logits(torch.tensor([ids]))[0].log_softmax(-1).detach()
        assert found[0].logprob == pytest.approx(float(wanted[found[0].id]), abs=1e-4)
        assert [id for id, _ in found[0].top] == wanted.topk(2).indices.tolist()
        assert [value for _, value in found[0].top] == pytest.approx(wanted.topk(2).values.tolist(), abs=1e-4)
        assert found[1].logprob < 0 and found[1].top == () and found[2].logprob is None
        ids.append(found[0].id)
    assert {token.end for token in found.values()} == {"length"}


def test_a_diverged_model_is_named():
    model = random_model(LLAMA_STYLE).eval()
    model.norm.weight.data[:] = float("nan")
    for temperature in (0.0, 1.0):
        with pytest.raises(UserError, match="not finite"):
            tokens(model, [1], 3, temperature=temperature)


def test_a_model_without_cache_computes_each_row_by_itself(monkeypatch):
    model = random_model(LLAMA_STYLE).eval()
    wanted = [tokens(model, prompt, 9, temperature=0.0) for prompt in PROMPTS]
    whole = model.logits
    monkeypatch.setattr(model, "new_cache", lambda: None)
    monkeypatch.setattr(model, "logits", lambda ids: whole(ids))
    found: list[list[int]] = [[] for _ in PROMPTS]
    for number, token in generate_batch(model, PROMPTS, 9, Sampling(temperature=0.0), stops=()):
        found[number].append(token.id)
    assert found == wanted


def test_a_request_without_ids_is_a_mistake():
    with pytest.raises(ValueError, match="at least one id"):
        Session(random_model(LLAMA_STYLE)).add(Request([], 3, Sampling()))
