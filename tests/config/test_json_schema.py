"""The JSON schema that editors use takes what llmkit takes, and finds what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from llmkit.config.json_schema import editor_schema
from llmkit.config.keys import all_keys
from llmkit.config.schema import Config
from llmkit.config.yaml_reader import read_file

CONFIGS = Path(__file__).parents[2] / "configs"
SCHEMA = editor_schema()
VALIDATOR = Draft202012Validator(SCHEMA)


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert "required" not in SCHEMA and Config.model_json_schema()["required"] == ["data"]


def test_every_configuration_of_ours_is_right() -> None:
    files = sorted(CONFIGS.glob("**/*.yaml"))
    assert len(files) > 20
    for file in files:
        tree = read_file(file, file.name, [])
        assert tree is not None
        assert [error.message for error in VALIDATOR.iter_errors(tree.plain())] == [], file


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"train": {"max_step": 3}}, ["train"]),
        ({"train": {"max_steps": "x"}}, ["train", "max_steps"]),
        ({"train": {"max_steps": 0}}, ["train", "max_steps"]),
        ({"optimizer": {"name": "adam"}}, ["optimizer", "name"]),
        ({"data": {"sources": [{"path": "a"}]}}, ["data", "sources", 0]),
        ({"reset": "modl"}, ["reset"]),
        ({"reset": ["model", "data.sources"]}, ["reset"]),
        ({"extend": "a.yaml"}, []),
    ],
)
def test_mistakes_are_found_at_their_place(content: dict[str, Any], place: list[str | int]) -> None:
    assert [list(error.absolute_path) for error in VALIDATOR.iter_errors(content)] == [place]


def test_a_file_need_not_hold_what_another_one_has() -> None:
    assert VALIDATOR.is_valid({"extends": ["a.yaml", "b.yaml"], "reset": "model", "train": {"max_steps": 3}})
    assert VALIDATOR.is_valid({"data": {"sequence_length": 64}})


def test_settings_are_described_in_a_line_with_their_defaults() -> None:
    train = SCHEMA["$defs"]["Train"]["properties"]
    assert train["max_steps"]["description"] == all_keys()["train.max_steps"].doc
    assert train["global_batch_size"]["default"] == Config.model_fields["train"].default.global_batch_size
    assert "\n" not in str([field.get("description") for field in train.values()])
