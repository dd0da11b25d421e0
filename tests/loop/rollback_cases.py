"""Runs of several ranks that go back, one layout after the other."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from llmkit.api import load
from llmkit.errors import AlreadyReported
from llmkit.loop.resume import Options
from llmkit.train import train
from tests.loop.poison import poisoned


def run(name: str, port: int, overrides: Sequence[str]) -> int:
    """One run; its exit code."""
    loaded = load("tiny.yaml", [f"run.name={name}", *overrides])
    with patch.dict(os.environ, MASTER_PORT=str(port)):
        try:
            return train(loaded, Options(quiet=True), started=0.0, environment=os.environ)
        except AlreadyReported as error:
            return error.code


def layouts(folder: str, ports: list[int], cases: dict[str, list[str]], bad: list[int]) -> list[int]:
    """Each case by its name. bad: the positions of the rows that are noise."""
    with contextlib.chdir(folder), poisoned(bad):
        codes = zip(cases.items(), ports, strict=True)
        return [run(name, port, overrides) for (name, overrides), port in codes]


def once(**arguments: Any) -> list[int]:
    """`layouts`, without what cannot be there: DeepSpeed is imported before any process group."""
    from llmkit.engine.deepspeed import import_deepspeed

    import_deepspeed()
    return layouts(**arguments)
