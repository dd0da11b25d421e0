"""A run that is started again and again, and killed as it starts: nothing grows, the next start trains."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.program import make_project, rows, run, start

LATEST = 2.0
"""Seconds after which a start is killed, at most: it then trains, on a quiet machine."""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.drill(
    "D47",
    injection="starts that are killed at random moments of their first seconds",
    expected="the next one trains, without a lost row; nothing is left of the others but their settings",
)
@pytest.mark.parametrize("times", [4, pytest.param(20, marks=pytest.mark.exhaustive)])
def test_starts_that_are_killed_leave_nothing_behind_that_grows(tmp_path: Path, times: int) -> None:
    make_project(tmp_path)
    draw, folder = random.Random(times), tmp_path / "runs" / "tiny"
    settings = ["train", "tiny.yaml", "train.max_steps=1000000", "checkpoint.every_steps=3"]
    for number in range(times):
        process = start(tmp_path, *settings, f"train.gradient_clipping={1 + number % 2}.0")
        time.sleep(draw.uniform(0.05, LATEST))
        process.kill()
        assert process.wait(HANG) == -signal.SIGKILL, process.output()
    last = rows(folder)[-1]["step"] if (folder / "metrics.jsonl").exists() else 0
    run(tmp_path, "train", "tiny.yaml", f"train.max_steps={last + 4}")
    assert [row["step"] for row in rows(folder) if "loss" in row] == list(range(1, last + 5))
    assert len(list((folder / "checkpoints").iterdir())) <= 3
    left = [name for name in names(folder) if ".part" in name or ".tmp-" in name or ".start-" in name]
    assert left == []
    assert len(list((folder / "generations").iterdir())) == 1
    assert len(list((folder / "configs").iterdir())) <= times + 1
    assert len(list((folder / "logs").iterdir())) <= 2
