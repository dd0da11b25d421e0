from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from llmkit.config import schema
from llmkit.data.building import cached_tokenizer as module
from llmkit.data.building.cached_tokenizer import cached_tokenizer
from llmkit.data.building.probe import open_sources
from llmkit.data.tokens.tokenizer import Tokenizer
from llmkit.errors import RunFault, UserError
from tests.data.tokens.tokenizers_for_tests import train_bpe

Words = Callable[[str, int], Path]


def settings(*paths: Path, live: bool = False, **changes: Any) -> schema.Data:
    sources = [schema.Source(type="text", path=str(path), separator="\n", live=live) for path in paths]
    fields: dict[str, Any] = {"sources": sources, "cache_dir": str(paths[0].parent / "cache")}
    return schema.Data(**fields | {"tokenizer": schema.Tokenizer(vocab_size=300)} | changes)


def make(config: schema.Data, report: Callable[[str], None] = lambda line: None) -> Tokenizer:
    return cached_tokenizer(config, open_sources(config), report, lambda: None)


def read_texts(config: schema.Data, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a tokenizer would be trained on."""
    seen: list[str] = []

    def look(spec: schema.Tokenizer, texts: Iterable[str]) -> None:
        seen.extend(texts)
        raise RunFault

    monkeypatch.setattr(module, "make_tokenizer", look)
    with pytest.raises(RunFault):
        make(config)
    return seen


@pytest.mark.parametrize("live", [False, True])
def test_text_comes_from_all_sources_up_to_a_limit(
    words: Words, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    monkeypatch.setattr(module, "TOKENIZER_TEXT", 2000)
    seen = read_texts(settings(words("one", 300), words("two", 300), live=live), monkeypatch)
    for name in ("one", "two"):
        assert 500 <= sum(len(text) for text in seen if text.startswith(name)) < 2000


@pytest.mark.parametrize("live", [False, True])
def test_held_out_text_is_not_among_it(words: Words, monkeypatch: pytest.MonkeyPatch, live: bool) -> None:
    path = words("one", 300)
    seen = read_texts(settings(path, live=live), monkeypatch)
    everything = path.read_text().splitlines()
    assert len(seen) == len(set(seen)) == 285
    assert set(seen) < set(everything)


def test_the_words_of_chats_are_text_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    source = schema.Source(type="jsonl", path=str(path), record="chat")
    assert read_texts(settings(path, sources=[source]), monkeypatch) == ["why\nso"]


def test_it_is_trained_once(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(words("one", 100))
    lines: list[str] = []
    first = make(config, lines.append)
    monkeypatch.setattr(module, "make_tokenizer", None)
    assert make(config, lines.append).hash == first.hash
    assert lines == ["data: trained a tokenizer of 300 tokens"]


def test_files_beside_a_local_tokenizer_make_it_another(words: Words, tmp_path: Path) -> None:
    train_bpe(["some words"], 300, "<end>").save(tmp_path / "local")
    spec = schema.Tokenizer(type="file", path=str(tmp_path / "local" / "tokenizer.json"), end_of_text="<end>")
    config = settings(words("one", 100), tokenizer=spec)
    assert make(config).chat_template is None
    (tmp_path / "local" / "chat_template.jinja").write_text("{{ messages }}")
    assert make(config).chat_template == "{{ messages }}"


def test_a_damaged_tokenizer_is_refused(words: Words, tmp_path: Path) -> None:
    config = settings(words("one", 100))
    make(config)
    (path,) = (tmp_path / "cache").glob("tokenizer-*/tokenizer.json")
    content = json.loads(path.read_text())
    content["model"]["merges"].pop()
    path.write_text(json.dumps(content))
    said = r"is not what was put there .tokenizer.json is damaged.; delete .*tokenizer-"
    with pytest.raises(UserError, match=said):
        make(config)


def test_another_text_gives_another_one(words: Words) -> None:
    path = words("one", 100)
    first = make(settings(path))
    path.write_text(path.read_text().replace("word", "term"))
    assert make(settings(path)).hash != first.hash


def test_other_held_out_text_gives_another_one(words: Words, tmp_path: Path) -> None:
    path = words("one", 300)
    for every in (0, 20, 0):
        make(settings(path, validation_fraction=1 / every if every else 0.0))
    assert len(list((tmp_path / "cache").glob("tokenizer-*"))) == 2


def test_a_vocabulary_that_the_text_cannot_fill_is_told(words: Words) -> None:
    lines: list[str] = []
    make(settings(words("one", 5), tokenizer=schema.Tokenizer(vocab_size=9999)), lines.append)
    assert len(lines) == 1
    assert "WARNING: the text yields a tokenizer of" in lines[0]
    assert "9999 are asked for" in lines[0]


def test_without_any_text_there_is_nothing_to_train_it_on(tmp_path: Path) -> None:
    source = schema.Source(type="shards", path=str(tmp_path))
    config = settings(tmp_path, sources=[source], cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"data.tokenizer.type: bpe trains .* no source has text"):
        make(config)


def test_a_changed_tokenizer_file_is_another_one(words: Words, tmp_path: Path) -> None:
    saved = [make(settings(words("one", count))) for count in (100, 9)]
    path, hashes = tmp_path / "tokenizer.json", []
    for tokenizer in saved:
        path.write_bytes(tokenizer.files()["tokenizer.json"])
        spec = schema.Tokenizer(type="file", path=str(path))
        hashes.append(make(settings(words("one", 5), tokenizer=spec)).hash)
    assert hashes == [tokenizer.hash for tokenizer in saved]
