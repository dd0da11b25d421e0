"""What the end of a run suggests to ask its model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkit.config import schema
from llmkit.data.building.prepare import prepare
from llmkit.loop.suggestions import generate_options

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
TEXT = {"text": "Once upon a time, there was a \u65e5\u672c model."}
PAIR = {"prompt": "the city's name is", "completion": " Paris"}
LONG = {"prompt": "two\nlines " * 30, "completion": " Paris"}


def options(
    folder: Path, *kinds: tuple[str, Any], sample: str | None = None, live: bool = False,
    sequence_length: int = 8,
) -> list[str]:
    sources = []
    for number, (record, content) in enumerate(kinds):
        path = folder / f"{number}.jsonl"
        path.write_text((json.dumps(content) + "\n") * 40)
        sources.append(schema.Source(type="jsonl", path=str(path), record=record, live=live))
    tokenizer = schema.Tokenizer(type="bytes")
    cache = str(folder / "cache")
    data = schema.Data(tokenizer=tokenizer, sources=sources, sequence_length=sequence_length, cache_dir=cache)
    config: Any = SimpleNamespace(data=data, monitor=SimpleNamespace(sample=sample))
    return generate_options(config, prepare(data, lambda line: None))


CHAT = ("chat", {"messages": TALK})


@pytest.mark.parametrize("live", [False, True])
def test_the_prompt_is_one_of_the_data(tmp_path: Path, live: bool) -> None:
    assert options(tmp_path, ("text", TEXT), live=live) == ["--prompt 'Once upon a'"]
    assert options(tmp_path, ("prompt_completion", PAIR), live=live) == [
        """--prompt 'the city'"'"'s name is'"""
    ]
    assert options(tmp_path, ("prompt_completion", LONG), live=live) == ["--prompt two"]


def test_chats_are_asked_as_chats(tmp_path: Path) -> None:
    assert options(tmp_path, CHAT) == ["--chat --prompt 'Hello'"]
    assert options(tmp_path, CHAT, ("text", TEXT)) == ["--chat --prompt 'Hello'", "--prompt 'Once upon a'"]


def test_pairs_of_texts_are_asked_as_text_and_pairs_of_chats_as_chats(tmp_path: Path) -> None:
    """And only then has the tokenizer a chat template."""
    texts = {"prompt": "the city is", "chosen": " Paris", "rejected": " Rome"}
    chats = {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": [TALK[1] | {"content": "no"}]}
    longer = {"sequence_length": 128}
    assert options(tmp_path, ("preference", texts), **longer) == ["--prompt 'the city is'"]
    assert options(tmp_path, ("preference", chats), **longer) == ["--chat --prompt 'Hello'"]


def test_the_prompt_of_the_settings_comes_first(tmp_path: Path) -> None:
    assert options(tmp_path, ("text", TEXT), sample="def ") == ["--prompt 'def '"]
    assert options(tmp_path, ("text", {"text": "\u65e5\u672c"})) == ["--prompt '\u65e5\u672c'"]
