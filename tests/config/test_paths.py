from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.errors import UserError

ROOT = Path(__file__).parents[2]

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


@pytest.mark.parametrize("key", ["run.dir", "data.cache_dir", "data.sources.1.path"])
def test_letters_that_the_locale_lacks_are_named_with_the_remedy(
    key: str, base: str, write: Write, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(write(), [f"{key}=caf\u00e9"])
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "iso8859-1")
    message = refused(base, f"{key}=caf\u00e9")
    assert f'{key} "caf\u00e9" (command line) has letters that no file name can have' in message
    assert "whose locale is iso8859-1\n      set LC_ALL=C.UTF-8" in message
    assert load(write(), [f"{key}=cafe"])


def test_so_are_those_of_the_current_folder_once(
    base: str, write: Write, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    folder = tmp_path / "caf\u00e9"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(UserError, match=r"1 mistake\n.*: the name of the current folder has"):
        load("../c.yaml")


def test_arguments_are_utf_8_in_every_locale(write: Write) -> None:
    """Bytes that the interpreter cannot decode come as lone surrogates."""
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "llmkit", "config", write(), "monitor.sample=caf\u00e9 \u2192"]
    done = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load(write(done.stdout, "printed.yaml")).config.monitor.sample == "caf\u00e9 \u2192"
    done = subprocess.run([*command, "run.dir=caf\u00e9"], env=plain, capture_output=True, text=True)
    assert done.returncode == 2
    assert "whose locale is ascii" in done.stderr


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("/mnt/copies", "must be a URL without ? and #"),
        ("copies", "must be a URL without ? and #"),
        ("''", "must be a URL without ? and #"),
        ("https://host/runs?x=1", "must be a URL without ? and #"),
        ("s3:/bucket/runs", "looks like a URL with one / missing: s3://"),
        ("https://user:pass-of-tests@host/runs", "has a URL in it with"),
        ("https://host/runs?X-Amz-Signature=pass-of-tests", "has a URL in it with"),
    ],
)
def test_copies_go_to_a_url_that_gives_no_access(base: str, refused: Refused, value: str, says: str) -> None:
    message = refused(base, f"checkpoint.copy_to={value}")
    assert says in message and "checkpoint.copy_to" in message and "pass-of-tests" not in message


def test_urls_for_copies(base: str, write: Write) -> None:
    for url in ("s3://bucket/runs", "gs://bucket/runs", "https://host/runs/", "file:///mnt/runs"):
        assert load(write(base), [f"checkpoint.copy_to={url}"]).config.checkpoint.copy_to == url
