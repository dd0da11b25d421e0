from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.load import load

Write = Callable[..., str]
Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("run.dir={}", "run.dir"),
        ("data.cache_dir={}", "data.cache_dir"),
        ("data.tokenizer={{type: file, vocab_size: null, path: '{}'}}", "data.tokenizer.path"),
        ("data.sources.1={{type: shards, path: '{}'}}", "data.sources.1.path"),
        ("data.sources.1={{type: shards, path: ['{}']}}", "data.sources.1.path"),
        ("data.sources.1={{type: megatron, path: '{}'}}", "data.sources.1.path"),
        ("data.sources.1={{type: shards, path: a, heldout_path: '{}'}}", "data.sources.1.heldout_path"),
    ],
)
def test_a_url_where_only_a_path_will_do_is_refused_with_what_to_do(
    base: str, refused: Refused, override: str, says: str
) -> None:
    for url in ("s3://bucket/x", "https://host/x", "hf://datasets/a/b", "S3://bucket/x"):
        message = refused(base, override.format(url), "evaluate.every_steps=0")
        assert says in message and url in message and "is a URL, and only a path will do" in message
        assert "download" in message or "mount" in message
    message = refused(base, override.format("file:///data/x"), "evaluate.every_steps=0")
    assert "leave out file://" in message


def test_text_may_lie_elsewhere(base: str, write: Write) -> None:
    for source in ("{type: jsonl, path: ['s3://b/x', a]}", "{type: text, path: 'file:///a'}"):
        load(write(base), [f"data.sources.1={source}"])


def test_a_slash_that_is_missing_is_seen(base: str, refused: Refused) -> None:
    message = refused(base, "data.sources.1={type: jsonl, path: [a, 's3:/bucket/x']}")
    assert "looks like a URL with one / missing: s3://" in message


def test_the_home_folder_is_meant_in_every_path(
    base: str, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    overrides = [
        "run.dir=~/runs",
        "data.cache_dir=~/cache",
        "data.tokenizer={type: file, vocab_size: null, path: ~/t.json, chat_template: ~/c.jinja}",
        "data.sources.1={type: jsonl, path: [~/a, b~]}",
    ]
    config = load(write(base), overrides).config
    assert (config.run.dir, config.data.cache_dir) == ("/home/me/runs", "/home/me/cache")
    tokenizer = config.data.tokenizer
    assert (tokenizer.path, tokenizer.chat_template) == ("/home/me/t.json", "/home/me/c.jinja")
    assert config.data.sources[1].path == ["/home/me/a", "b~"]
