"""Texts that a shell, a format or a path would make something of, in settings of a run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from llmkit.config.load import load
from llmkit.errors import UserError
from llmkit.run_folder import RunFolder

PARTS = (
    "$(touch canary)", "`touch canary`", ";touch canary;", "|touch canary", "&& touch canary",
    "\ntouch canary\n", "!!python/object:os.system", "'", '"', "\\", "\0", "{x}", "%s", "../", "/", "~", "*",
    "a", "é", "\x1b[2J", "-", " ",
)  # fmt: skip
SETTINGS = (
    "run.name", "run.dir", "data.cache_dir", "data.sources.0.path", "monitor.wandb.project", "monitor.sample",
)  # fmt: skip


@pytest.mark.drill(
    "D36",
    injection="1,000 generated texts as values of six settings, run folders of those that are taken",
    expected="taken as they are, or refused; nothing is executed, nothing lies outside",
)
def test_hostile_texts_as_settings_run_nothing(project: Path, measured: Callable[..., None]) -> None:
    draw, taken = random.Random(0), 0
    outside = {path.name for path in project.parent.iterdir()}
    for number in range(1000):
        text = "".join(draw.choices(PARTS, k=draw.randint(1, 5)))
        setting = SETTINGS[number % len(SETTINGS)]
        try:
            config = load("tiny.yaml", [f"{setting}={text}"]).config
            taken += 1
            if setting == "run.name":
                RunFolder.open(Path(config.run.dir) / config.run.name, f"llmkit train {text}").close()
        except UserError:
            continue
    assert 100 < taken < 900  # both are tried
    assert {path.name for path in project.parent.iterdir()} == outside
    canaries = [path for path in project.rglob("*") if path.name == "canary"]
    assert canaries == []
    measured("executed", len(canaries), "of 1000")
