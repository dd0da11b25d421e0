"""Choosing tokens, with and without a cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from llmkit.data.tokens.make_tokenizer import bytes_tokenizer
from llmkit.data.tokens.stream_decoder import StreamDecoder
from llmkit.errors import UserError
from llmkit.generate import Sampling, generate, stream_text
from llmkit.prompts import text_prompt
from tests.shapes import GPT2_STYLE, LLAMA_STYLE, random_model


def tokens(model, prompt, count, use_cache=True, stops=(), **sampling) -> list[int]:
    return list(generate(model, prompt, count, Sampling(**sampling), stops=stops, use_cache=use_cache))


def choices(sampling: Sampling, logits: torch.Tensor, seen=()) -> Counter[int]:
    generator = torch.Generator().manual_seed(0)
    seen = torch.tensor(seen, dtype=torch.int64)
    return Counter(sampling.choose(logits, seen, generator) for _ in range(2000))


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


@pytest.mark.parametrize(
    "sampling", [{"temperature": 5.0, "repetition_penalty": 1.1, "top_k": 4000}, {"temperature": 0.0}]
)
def test_ids_that_the_tokenizer_lacks_are_never_sampled(monkeypatch, sampling):
    model = random_model(replace(LLAMA_STYLE, vocab_size=4096, padded_vocab_size=4096)).eval()
    tokenizer, pushed = bytes_tokenizer("<|end|>"), []
    monkeypatch.setattr(StreamDecoder, "push", lambda self, token: pushed.append(token) or "")
    list(stream_text(model, tokenizer, text_prompt(tokenizer, "a"), 100, Sampling(**sampling)))
    assert pushed and max(pushed) < 256
    if sampling["temperature"]:
        assert sum(token > 256 for token in tokens(model, [1], 100, **sampling)) > 50


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


def test_streamed_text_is_the_decoded_tokens():
    tokenizer = bytes_tokenizer("<|endoftext|>")
    shape = replace(LLAMA_STYLE, vocab_size=257, padded_vocab_size=264)
    model = random_model(shape).eval()
    sampling = Sampling(temperature=1.5, seed=2)
    parts = list(stream_text(model, tokenizer, text_prompt(tokenizer, "ab\u00e9"), 60, sampling))
    ids = [tokenizer.end_of_text_id, *"ab\u00e9".encode()]
    expected = list(generate(model, ids, 60, sampling, stops={tokenizer.end_of_text_id}))
    assert "".join(parts) == tokenizer.decode(expected)
    assert len(parts) > 1
