"""A configuration that is no readable file is refused with the reason."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from llmkit.config.mistakes import Mistake
from llmkit.config.yaml_reader import read_file


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
