"""Settings that another version has stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmkit.config.schema import Config, Data, Source
from llmkit.config.stored import read_stored
from llmkit.errors import UserError

CONFIG = Config(data=Data(sources=[Source(type="stdlib"), Source(type="text", path="a")]))


def stored(path: str, value: Any) -> dict[str, Any]:
    """The stored settings with a value at a dotted path."""
    content: dict[str, Any] = json.loads(json.dumps(CONFIG.model_dump(mode="json")))
    *sections, name = [int(part) if part.isdecimal() else part for part in path.split(".")]
    here: Any = content
    for section in sections:
        here = here[section]
    here[name] = value
    return content


def test_what_was_stored_comes_back() -> None:
    notes: list[str] = []
    assert read_stored(stored("run.seed", 0), "step-2", notes.append) == CONFIG
    assert notes == []


def test_the_home_folder_stands_for_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/x")
    read = read_stored(stored("data.sources.1.path", ["~/a", "b"]), "step-2", print)
    assert read.data.sources[1].path == ["/home/x/a", "b"]


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("model.experts", 8, "model.experts = 8"),
        ("data.sources.1.dreams", True, "data.sources.1.dreams = true"),
        ("sleep", {"hours": 8}, "sleep = a mapping"),
        ("kernels.backend", "cuda9", 'kernels.backend = "cuda9"'),
        ("train.micro_batch_size", "some", 'train.micro_batch_size = "some"'),
        ("train.precision", "fp4", 'train.precision = "fp4"'),
        ("optimizer.betas", [0.9, "much"], "optimizer.betas = "),
    ],
)
def test_what_is_not_known_is_left_out_and_told(path: str, value: Any, shown: str) -> None:
    notes: list[str] = []
    assert read_stored(stored(path, value), "step-2", notes.append) == CONFIG
    (note,) = notes
    assert note.startswith(f"step-2: left out {shown}") and ", which llmkit " in note


@pytest.mark.parametrize(
    ("path", "value", "shown"),
    [
        ("data.sources.1.type", "film", 'data.sources.1.type = "film"'),
        ("data.sequence_length", 1.5, "data.sequence_length = 1.5"),
        ("model.mlp", "relu", 'model.mlp = "relu"'),
        ("model", 7, "model = 7"),
    ],
)
def test_what_decides_the_model_or_its_data_must_be_known(path: str, value: Any, shown: str) -> None:
    with pytest.raises(UserError) as refused:
        read_stored(stored(path, value), "step-2", print)
    assert str(refused.value).startswith(f"step-2: its setting {shown} is none that llmkit ")


def test_what_did_not_exist_then_has_its_default() -> None:
    content = stored("run.seed", 0)
    del content["schedule"], content["data"]["sources"][1]["weight"]
    assert read_stored(content, "step-2", print) == CONFIG
