"""A configuration that is no readable file is refused with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.config.mistakes import Mistake
from llmkit.config.yaml_reader import read_file
from llmkit.errors import UserError


def test_what_is_no_file_is_refused(write: Callable[..., str], tmp_path: Path) -> None:
    write()
    os.mkfifo(tmp_path / "pipe")
    for name, what in (
        (".", "a folder"),
        ("nothing.yaml", "no such file"),
        ("pipe", "no file"),
        ("a\0b", "no such file"),
    ):
        mistakes: list[Mistake] = []
        assert read_file(Path(name), name, mistakes) is None
        assert what in mistakes[0].what


def test_how_a_file_that_comes_with_llmkit_is_had(write: Callable[..., str]) -> None:
    mine = write("extends: configs/sft.yaml\n")
    for name in ("configs/demo.yaml", "./launch/zero2.yaml"):
        with pytest.raises(UserError, match=r"there is no such file; .* `llmkit launch-files \.` writes it"):
            load(name)
    with pytest.raises(UserError, match=r"no file configs/sft\.yaml .* `llmkit launch-files \.` writes it"):
        load(mine)
    for name in ("configs/mine.yaml", "demo.yaml", "configs/../pyproject.toml"):
        with pytest.raises(UserError) as error:
            load(name)
        assert "launch-files" not in str(error.value)
