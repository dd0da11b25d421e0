"""Runs of several ranks that go back, one layout after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

from llmkit.api import load
from llmkit.engine.deepspeed import import_deepspeed
from llmkit.errors import AlreadyReported
from llmkit.loop.options import Options
from llmkit.train import train
from tests.loop.poison import poisoned
from tests.ranks import agreed_port


def run(name: str, overrides: Sequence[str]) -> int:
    """One run; its exit code."""
    loaded = load("tiny.yaml", [f"run.name={name}", *overrides])
    with patch.dict(os.environ, MASTER_PORT=str(agreed_port(Path(), name))):
        try:
            return train(loaded, Options(quiet=True), started=0.0, environment=os.environ)
        except AlreadyReported as error:
            return error.code


def layouts(folder: str, cases: dict[str, list[str]], bad: list[int]) -> list[int]:
    """Each case by its name. bad: the positions of the rows that are noise."""
    import_deepspeed()  # before any process group
    with contextlib.chdir(folder), poisoned(bad):
        return [run(name, overrides) for name, overrides in cases.items()]
