"""Text of generated tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmkit.data.tokens.stream_decoder import StreamDecoder
from llmkit.generation.sampling import Sampling
from llmkit.generation.session import generate
from llmkit.generation.text import StopStrings, complete, stream_batch, stream_text
from llmkit.prompts import text_prompt
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.shapes import LLAMA_STYLE, random_model


def tokens(model, prompt, count, **sampling) -> list[int]:
    return list(generate(model, prompt, count, Sampling(**sampling), stops=()))


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


@pytest.mark.parametrize(
    ("pieces", "stops", "given"),
    [
        (["ab", "c<", "end>d"], ["<end>"], "abc"),
        (["ab<", "en", "x"], ["<end>"], "ab<enx"),
        (["<end"], ["<end>"], "<end"),
        (["aab", "b"], ["ab"], "a"),
        (["a", "b"], [""], "ab"),
        ([], ["x"], ""),
        (["a\n", "\nb"], ["\n\n", "b"], "a"),
        (["xa", "abab", "c"], ["ababc", "q"], "xa"),
        (["one two"], ["two", "ne"], "o"),
        (["User", ": "], ["User:", "Us"], ""),
    ],
)
def test_texts_up_to_a_stop(pieces, stops, given):
    reader, text = StopStrings(stops), ""
    for piece in pieces:
        before, found = reader.push(piece)
        text += before
        if found:
            break
    assert text + reader.finish() == given


def test_nothing_that_may_begin_a_stop_is_given_out_early():
    reader = StopStrings(["<|end|>", "\n\n"])
    assert [reader.push(piece) for piece in ("a<|", "en", "x\n", "y", "\n", "\nz")] == [
        ("a", False), ("", False), ("<|enx", False), ("\ny", False), ("", False), ("", True),
    ]  # fmt: skip


def test_answers_end_at_stop_strings_over_the_borders_of_tokens():
    """Each of a batch as alone; a token of text is a byte here, so that every stop is cut."""
    tokenizer = bytes_tokenizer("<|endoftext|>")
    model = random_model(replace(LLAMA_STYLE, vocab_size=257, padded_vocab_size=264)).eval()
    prompts = [text_prompt(tokenizer, text) for text in ("ab\u00e9", "x", "a longer prompt")]
    way = Sampling(temperature=1.5, seed=2)
    whole = complete(stream_batch(model, tokenizer, prompts, 40, way), len(prompts))
    assert [answer.end for answer in whole] == ["length"] * 3
    assert [len(answer.tokens) for answer in whole] == [40] * 3
    stops = [whole[0].text[5:8], whole[1].text[20:24]]
    pieces = stream_batch(model, tokenizer, prompts, 40, way, stops=stops, rows=2)
    found = complete(pieces, len(prompts))
    for before, after in zip(whole, found, strict=True):
        places = [before.text.find(stop) for stop in stops if stop in before.text]
        assert after.text == before.text[: min(places, default=None)]
        assert after.end == ("stop" if places else "length")
    assert [answer.end for answer in found[:2]] == ["stop", "stop"]
