"""A whole run by its commands: train, stop, train on, evaluate, generate; on a GPU as on the CPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from llmkit.cli import main
from llmkit.loop.scalars import Scalars
from llmkit.loop.step_log import StepLog
from llmkit.monitor.peaks import published_peak
from tests.program import at_step, make_project, rows

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def settings(device: torch.device) -> list[str]:
    """The demo on a GPU; on a CPU a model that takes a second."""
    if device.type == "cuda":
        return [str(DEMO), "run.name=tiny", "train.max_minutes=null", "train.max_steps=60"]
    return ["tiny.yaml", "run.deterministic=false"]


def losses(folder: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(folder) if "loss" in row}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's tokenizer and tokens, made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    (tmp_path / "data-cache").symlink_to(cache)
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "tiny"


def test_a_run_stops_goes_on_and_is_used(device, folder, monkeypatch, capsys):
    arguments = ["train", *settings(device), "monitor.log_every=5"]
    assert main(arguments) == 0
    whole = losses(folder)
    shutil.move(folder, folder.with_name("whole"))

    stop = 40 if device.type == "cuda" else 7
    at_step(monkeypatch, stop, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(arguments) == 75
    assert main(arguments) == 0
    tolerance = 1e-2 if device.type == "cuda" else 1e-6
    assert losses(folder) == pytest.approx(whole, abs=tolerance)
    assert whole[max(whole)] < whole[min(whole)] - 0.05

    capsys.readouterr()
    assert main(["evaluate", str(folder)]) == 0
    evaluated = float(re.search(r"held-out loss\s+([\d.]+)", capsys.readouterr().out)[1])
    (wanted,) = (row["eval_loss"] for row in rows(folder) if "eval_loss" in row)
    assert evaluated == pytest.approx(wanted, abs=2e-2)
    assert main(["generate", str(folder), "--prompt", "the", "--max-new-tokens", "40", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    assert main(["generate", str(folder), "--prompt", "the", "--max-new-tokens", "40", "--seed", "1"]) == 0
    assert capsys.readouterr().out == first
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["precision"] == ("bf16" if device.type == "cuda" else "fp32")


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_learns_what_the_cpu_learns(folder, monkeypatch, precision):
    arguments = [
        "train", *settings(torch.device("cuda")), "train.max_steps=30", f"train.precision={precision}",
        "optimizer.name=adamw", "optimizer.learning_rate=1e-3", "kernels.compile=false",
        "monitor.log_every=5",
    ]  # fmt: skip
    assert main(arguments) == 0
    on_gpu = losses(folder)
    shutil.move(folder, folder.with_name("gpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 0
    assert on_gpu == pytest.approx(losses(folder), abs=1e-3 if precision == "fp32" else 2e-2)


@pytest.mark.cuda
def test_what_a_gpu_saved_goes_on_on_the_cpu(folder, monkeypatch):
    cuda = torch.device("cuda")
    arguments = [
        "train",
        *settings(cuda),
        "train.max_steps=30",
        "train.precision=fp32",
        "kernels.compile=false",
    ]
    arguments += ["monitor.log_every=5"]
    assert main(arguments) == 0
    whole = losses(folder)
    shutil.move(folder, folder.with_name("whole"))
    at_step(monkeypatch, 15, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(arguments) == 75
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(arguments) == 0
    assert losses(folder) == pytest.approx(whole, abs=2e-3)


@pytest.mark.cuda
def test_rows_of_a_gpu_run_add_up_and_wait_for_nothing_but_the_step_before(folder, monkeypatch):
    after_step, read = StepLog.after_step, Scalars.read

    def watched(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return after_step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def waits(scalars):
        torch.cuda.set_sync_debug_mode("default")
        values = read(scalars)
        torch.cuda.set_sync_debug_mode("error")
        return values

    monkeypatch.setattr(StepLog, "after_step", watched)
    monkeypatch.setattr(Scalars, "read", waits)
    asked = ["monitor.log_every=1", "train.max_steps=30", "evaluate.every_steps=0"]
    assert main(["train", *settings(torch.device("cuda")), *asked]) == 0
    found = [row for row in rows(folder) if "loss" in row]
    peak = published_peak(torch.cuda.get_device_name())
    for row in found[2:]:
        assert 0.0 < row["time/optimizer"] < row["time/step"] + row["time/data"] + row["time/other"]
        assert row["reserved_memory_gib"] >= row["peak_memory_gib"] > 0.0
        assert row["mfu"] is None if peak is None else 0.0 < row["mfu_causal"] < row["mfu"] < 1.0
    assert sum(row["time/optimizer"] for row in found[2:]) < sum(row["time/step"] for row in found[2:])
    assert all(row["tokens_per_second"] > 0.0 for row in found if not row["time/compile"] and row["step"] > 1)
