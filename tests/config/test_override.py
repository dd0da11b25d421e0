"""What an override names: a dotted key, in which entries of lists have numbers or names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llmkit.config.load import load
from llmkit.config.override import MAX_KEY_PARTS, joined, key_parts

Write = Callable[..., str]
Refused = Callable[..., str]

NAMED = """\
data: {sources: [{type: stdlib}, {type: text, path: a, name: web}, {type: text, path: b}]}
train: {max_steps: 9}
schedule: {warmup_steps: 1}
"""


@pytest.mark.parametrize(
    ("entry", "index"),
    [(".1", 1), ("[1]", 1), (".web", 1), ("[web]", 1), (".text-2", 2), (".stdlib-0", 0), ("[stdlib-0]", 0)],
)
def test_an_entry_is_named_by_its_number_or_its_name(entry: str, index: int, write: Write) -> None:
    loaded = load(write(NAMED), [f"data.sources{entry}.weight=3"])
    weights = [source.weight for source in loaded.config.data.sources]
    assert weights == [3.0 if number == index else 1.0 for number in range(3)]
    assert loaded.origins[f"data.sources.{index}.weight"] == "command line"


def test_brackets_work_in_lists_of_values(write: Write) -> None:
    config = load(write(NAMED), ["optimizer.betas=[0.8, 0.9]", "optimizer.betas[1]=0.5"]).config
    assert config.optimizer.betas == (0.8, 0.5)


def test_a_name_that_is_a_number_loses_to_the_place(write: Write) -> None:
    text = NAMED.replace("name: web", "name: '0'")
    assert load(write(text), ["data.sources.0.weight=3"]).config.data.sources[0].weight == 3.0


def test_an_entry_that_is_not_there_is_refused_with_the_names_that_are(refused: Refused) -> None:
    message = refused(NAMED, "data.sources.wab.weight=3")
    assert 'data.sources is a list of 3 entries, numbered from 0; there is no "wab" in it' in message
    assert "by name: stdlib-0, web, text-2" in message


def test_a_name_of_several_entries_is_refused(refused: Refused) -> None:
    message = refused(NAMED.replace("path: b", "path: b, name: web"), "data.sources.web.weight=3")
    assert 'data.sources has several entries that are called "web"' in message


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["train.max_steps", "5"], "train.max_steps=5"),
        (["train.max_steps:", "5"], "train.max_steps=5"),
        (["train.max_steps:5"], "train.max_steps=5"),
        (["train.max_steps", "=", "5"], "train.max_steps=5"),
        (["train.max_steps=", "5"], "train.max_steps=5"),
        (["train.max_steps", "=5"], "train.max_steps=5"),
        (["train.max_steps"], "train.max_steps=VALUE"),
        (["train.max_steps", "run.seed=3"], "train.max_steps=VALUE"),
        (["data.sources[1].weight", "2"], "'data.sources[1].weight=2'"),
    ],
)
def test_a_setting_that_is_written_otherwise_is_answered_with_the_right_form(
    words: list[str], form: str, refused: Refused
) -> None:
    message = refused(NAMED, *words)
    assert "1 mistake\n" in message and message.endswith(f"write {form}")


@pytest.mark.parametrize("name", ["data.yaml", "model.yml", "configs/data.yaml"])
def test_a_second_file_is_no_setting_even_if_its_name_begins_as_one(name: str, refused: Refused) -> None:
    message = refused(NAMED, name, "run.seed=3")
    assert "more of them are named after `extends:`" in message and "VALUE" not in message


def test_what_is_written_right_is_left_alone() -> None:
    words = ["train.max_steps=", "run.name=a b", "data.sources.web.weight=2", "words.of.others", "x"]
    assert list(joined(words)) == [(word, "") for word in words]


def test_a_secret_that_is_written_otherwise_is_not_shown(refused: Refused) -> None:
    message = refused(NAMED, "monitor.wandb.api_key", "0123456789" * 4)
    assert "api_key" in message and "0123456789" not in message


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("train.max_steps", ["train", "max_steps"]),
        ("a[1].b", ["a", "1", "b"]),
        ("a[s.x].b", ["a", "s.x", "b"]),
        ("a[1][2]", ["a", "1", "2"]),
        ("a[].b", None),
        ("a[1", None),
        ("a]1[", None),
        ("[1].a", None),
        ("a.[1]", None),
        ("a[1]b", None),
        ("a..b", None),
        (".a", None),
        ("a ", None),
        (".".join("a" * (MAX_KEY_PARTS + 1)), None),
    ],
)
def test_the_parts_of_a_key(key: str, parts: list[str] | None) -> None:
    assert key_parts(key) == parts
