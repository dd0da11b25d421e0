"""The example of a loop of one's own, as it stands in the docs: its losses are llmkit's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.limits import HANG
from tests.program import environment, make_project, rows

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "accelerate_loop.py"
SETTINGS = [
    "tiny.yaml", "model.hidden_dropout=0.0", "optimizer.eps=1e-5", "schedule.name=constant",
    "schedule.warmup_steps=0", "train.max_steps=4", "train.gradient_clipping=0.5", "run.seed=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project in which llmkit itself has trained on one process."""
    folder = tmp_path_factory.mktemp("example")
    make_project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", *SETTINGS, "checkpoint.every_steps=0"]) == 0
    return folder


def test_the_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 40


@pytest.mark.parametrize("stage", [pytest.param("zero2", marks=pytest.mark.exhaustive), "zero3"])
def test_the_example_trains_as_llmkit_does(project, stage):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    done = subprocess.run(
        [*launch, str(ROOT / "launch" / f"{stage}.yaml"), "--num_processes", "2", str(EXAMPLE), *SETTINGS],
        cwd=project, env={**environment(), "CUDA_VISIBLE_DEVICES": ""}, text=True, timeout=HANG,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    losses = [float(loss) for loss in re.findall(r"^step \d+ loss (\S+)$", done.stdout, re.MULTILINE)]
    ours = [row["loss"] for row in rows(project / "runs" / "tiny") if "loss" in row]
    assert losses == pytest.approx(ours, rel=1e-5)
