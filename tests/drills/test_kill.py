"""A run that is killed at random points and started again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from llmkit.checkpoint.read import open as open_checkpoint
from llmkit.kernels.compiler import compiler_missing
from tests.chosen import few_at_every_commit
from tests.limits import HANG
from tests.program import make_project, run, start, timeless

NO_COMPILER = compiler_missing(torch.device("cpu"))


def final_state(folder: Path, steps: int) -> dict[tuple[str, str], torch.Tensor]:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.step == steps
    return {
        (kind, name): checkpoint.read(name, kind)
        for kind in checkpoint.kinds()
        for name in checkpoint.names(kind)
    }


def kill_after(folder: Path, size: int, *arguments: str) -> bool:
    """Starts the run and kills it once metrics.jsonl is longer than `size`; False if it ended before."""
    process = start(folder, *arguments)
    metrics = folder / "runs" / "killed" / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_size > size:
            process.kill()
        time.sleep(0.001)
    assert process.returncode in (0, -signal.SIGKILL), process.output()
    return process.returncode != 0


SETTINGS = {
    "fp32": ["train.precision=fp32", "train.micro_batch_size=2"],
    "bf16": ["train.precision=bf16", "model.norm=layernorm", "data.document_masks=true"],
    "compiled": ["train.precision=bf16", "kernels.compile=true", "optimizer.name=muon"],
}


@pytest.mark.drill(
    "D27",
    injection="kill -9 at random times, in fp32, bf16 and with torch.compile and Muon",
    expected="losses, weights and moments are bit-equal to those of a run that nothing disturbed",
)
@pytest.mark.parametrize(
    ("steps", "times"), [(60, 2), pytest.param(200, 4, marks=pytest.mark.exhaustive)], ids=["some", "many"]
)
@pytest.mark.parametrize("kind", few_at_every_commit(SETTINGS, ["bf16"]))
def test_killed_and_straight_runs_are_bit_equal(tmp_path, kind, steps, times, measured):
    if kind == "compiled" and NO_COMPILER is not None:
        pytest.skip(NO_COMPILER)
    config = make_project(tmp_path).name
    common = [f"train.max_steps={steps}", "checkpoint.every_steps=13", "evaluate.every_steps=60"]
    common += SETTINGS[kind]
    run(tmp_path, "train", config, *common, "run.name=straight")
    straight = tmp_path / "runs" / "straight"
    whole = (straight / "metrics.jsonl").stat().st_size

    draw = random.Random(kind)
    points = sorted(draw.uniform(0.02, 0.95) for _ in range(times))
    kills = sum(
        kill_after(tmp_path, int(point * whole), "train", config, *common, "run.name=killed")
        for point in points
    )
    assert kills, "no run was killed: all had ended before this process was given the time to do it"
    run(tmp_path, "train", config, *common, "run.name=killed")

    tensors = same_end(tmp_path / "runs" / "killed", straight, steps)
    measured("kills", kills, "")
    measured("tensors that are bit-equal", tensors, "")


def same_end(killed: Path, straight: Path, steps: int) -> int:
    """Checks that both runs have the same record and state, bit for bit; returns how many tensors that is."""
    assert timeless(killed) == timeless(straight)
    a, b = final_state(straight, steps), final_state(killed, steps)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert (killed / "DONE").exists()
    return len(a)


KILLS = 200


@pytest.mark.exhaustive
@pytest.mark.drill(
    "D4",
    injection="200 kills at random times: while the program starts, trains and saves",
    expected="losses, weights and moments are bit-equal to those of a run that nothing disturbed",
)
def test_two_hundred_kills_change_no_bit(tmp_path, measured):
    config = make_project(tmp_path).name
    common = ["train.max_steps=400", "checkpoint.every_steps=3", "checkpoint.keep_last=2"]
    run(tmp_path, "train", config, *common, "run.name=straight")
    straight, killed = (tmp_path / "runs" / name for name in ("straight", "killed"))
    row = (straight / "metrics.jsonl").stat().st_size // 400
    draw, kills, runs = random.Random(4), 0, 0
    while kills < KILLS:
        runs += 1
        while kill_on_the_way(tmp_path, draw, row, "train", config, *common, "run.name=killed"):
            kills += 1
        same_end(killed, straight, 400)
        shutil.rmtree(killed)
    measured("kills", kills, f"in {runs} runs")


def kill_on_the_way(folder: Path, draw: random.Random, row: int, *arguments: str) -> bool:
    """Kills the run at some moment of its start, or some steps later; False if it ended before."""
    process = start(folder, *arguments)
    metrics = folder / "runs" / "killed" / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    at_start = draw.random() < 0.3
    until, delay = size + row * draw.randrange(12), draw.uniform(0.0, 1.5 if at_start else 0.05)
    while not at_start and process.poll() is None:
        if metrics.exists() and metrics.stat().st_size > until:
            break
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    code = process.wait(HANG)
    assert code in (0, -signal.SIGKILL), process.output()
    return code != 0
