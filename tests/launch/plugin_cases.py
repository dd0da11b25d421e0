"""What the processes of tests with plugins run."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import llmkit
from llmkit.cli import main


def train(*overrides: str) -> list:
    """Exit code and output of a run in the working directory."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
        code = main(["train", "tiny.yaml", *overrides])
    return [code, shown.getvalue()]


def train_with_own_plugin(folder: str) -> list:
    """A run whose plugin is another one on each rank."""
    rank = os.environ["RANK"]
    mine = Path(folder) / f"rank-{rank}"
    mine.mkdir()
    (mine / "their_plugin.py").write_text(f"RANK = {rank}\n")
    (mine / "tiny.yaml").write_text((Path(folder) / "tiny.yaml").read_text())
    os.chdir(mine)
    return train(f"run.dir={folder}/runs", "plugins=[their_plugin]")


def go_on(folder: str, overrides: list[list[str]]) -> list:
    """Goes on, from Python, with the run of a project in which its plugin lies, once for each overrides.

    Returns whether the run was finished each time, and the steps that a hook saw.
    """
    os.chdir(folder)
    found = []
    for each in overrides:
        seen = Steps()
        run = llmkit.train(llmkit.load("tiny.yaml", each), hooks=[seen])
        found.append([run.done, seen.steps])
    return found


class Steps(llmkit.Hook):
    """Remembers the steps of this process."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def after_step(self, t: Any, result: Any) -> None:
        self.steps.append(t.state.step)
