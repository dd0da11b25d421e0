"""The ids that end a generation, and the tokenizer's files."""

from __future__ import annotations

import json

from llmkit.convert.companions import special_ids, tokenizer_files
from llmkit.data.tokens.chat import CHATML
from llmkit.data.tokens.tokenizer import Tokenizer
from tests.data.tokens.tokenizers_for_tests import bytes_tokenizer


def with_tokens(template, *more):
    """Bytes, end-of-text and further control tokens from 257 on."""
    spec = json.loads(bytes_tokenizer("<|end|>").files()["tokenizer.json"])
    for number, text in enumerate(more, 257):
        spec["added_tokens"].append(spec["added_tokens"][0] | {"id": number, "content": text})
    return Tokenizer(json.dumps(spec), "<|end|>", chat_template=template, named_tokens={"bos_token": "<s>"})


def test_the_end_of_a_turn_ends_a_generation_too():
    tokenizer = with_tokens(CHATML, "<s>", "<|im_start|>", "<|im_end|>")
    assert special_ids(tokenizer) == {"bos_token_id": 257, "eos_token_id": [256, 259]}
    assert special_ids(with_tokens(None)) == {"eos_token_id": 256}


def test_a_template_that_refuses_the_chat_ends_nothing():
    assert special_ids(with_tokens("{{ raise_exception('no') }}", "<s>"))["eos_token_id"] == 256


def test_the_template_and_the_context_are_in_the_tokenizers_files():
    files = tokenizer_files(with_tokens(CHATML, "<s>"), 77)
    config = json.loads(files["tokenizer_config.json"])
    assert config["chat_template"] == CHATML and config["model_max_length"] == 77
    assert config["bos_token"] == "<s>" and config["eos_token"] == "<|end|>"
