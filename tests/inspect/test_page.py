"""The page of `llmkit inspect`: what it holds, and that no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from llmkit.inspect.page import render
from llmkit.inspect.readings import read_text
from llmkit.prompts import text_prompt
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer
from tests.shapes import LLAMA_STYLE, random_model

HOSTILE = "</script><img src=x onerror=1>&amp;'\"<!--\u2028"


class Document(HTMLParser):
    """Elements, text of tokens, and the content of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.within = ""
        self.contents: dict[str, list[str]] = {}
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.within = tag
        self.attributes += attrs

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        self.contents.setdefault(self.within, []).append(data)


@pytest.fixture(scope="module")
def found():
    tokenizer = bytes_tokenizer("<|end|>")
    shape = replace(LLAMA_STYLE, vocab_size=257, padded_vocab_size=264, max_position_embeddings=80)
    model = random_model(shape).eval().requires_grad_(False)
    readings = read_text(model, text_prompt(tokenizer, HOSTILE).ids)
    page = render(readings, tokenizer, f"run {HOSTILE}", [f"Weights: {HOSTILE}."])
    return tokenizer, readings, page, Document(page)


def test_hostile_text_is_text(found):
    tokenizer, readings, _, document = found
    tags = document.tags
    assert tags.count("script") == 2 and tags.count("img") == 0
    assert tags.count("span") == len(readings.tokens) + 3
    assert not [name for name, _ in document.attributes if name.startswith("on") or name in ("src", "href")]
    shown = "".join(document.contents["span"])
    assert "".join(tokenizer.decode([token]) for token in readings.tokens.tolist()) in shown
    assert document.contents["h1"][0].startswith(f"run {HOSTILE}")


def test_the_policy_allows_the_one_script_alone(found):
    *_, page, document = found
    policy = next(value for name, value in document.attributes if value and "default-src" in value)
    script = document.contents["script"][-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert not re.search(r"https?://|//[a-z]+\.", page.replace(HOSTILE, ""))


def test_the_data_are_the_readings(found):
    _, readings, _, document = found
    data = json.loads(document.contents["script"][0])
    layers, heads, seq, _ = readings.attention.shape
    shares = np.frombuffer(base64.b64decode(data["attention"]), np.uint8).reshape(layers, heads, seq, seq)
    np.testing.assert_allclose(shares / 255, readings.attention, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(torch.tensor(data["losses"]), readings.losses, rtol=1e-3, atol=0)
    torch.testing.assert_close(torch.tensor(data["attributions"]), readings.attributions, rtol=1e-3, atol=0)
    assert data["lens"]["ids"] == readings.lens.candidates.tolist()
    assert data["targets"] == readings.targets.tolist()
    assert [json.loads(text) for text in data["tokens"][1:3]] == ["<", "/"]
    assert data["tokens"][-1] == "bytes:\\xa8"  # of U+2028
    assert {str(token) for row in readings.lens.candidates.flatten(0, 1).tolist() for token in row} <= set(
        data["names"]
    )
