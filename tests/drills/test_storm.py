"""Starts under bad conditions: one after another that are killed, and one that may open few files."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.limits import HANG
from tests.program import environment, make_project, rows, run, start

LATEST = 2.0
"""Seconds after which a start is killed, at most: it then trains, on a quiet machine."""


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.drill(
    "D47",
    injection="starts that are killed at random moments of their first seconds",
    expected="the next one trains, without a lost row; nothing is left of the others but their settings",
)
@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.exhaustive)])
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


@pytest.mark.exhaustive
@pytest.mark.drill(
    "D46", injection="ulimit -n 256, soft and hard; 8 workers", expected="the run trains to its end"
)
def test_few_files_are_enough_for_eight_workers(tmp_path: Path) -> None:
    make_project(tmp_path)
    arguments = ["-m", "llmkit", "train", "tiny.yaml", "data.workers=8", "monitor.sample=null"]
    command = ["bash", "-c", 'ulimit -n 256; exec "$@"', "bash", sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    assert rows(tmp_path / "runs" / "tiny")[-1]["step"] == 12
