"""A run beside what it was expected to take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from llmkit.cores import available_cores
from llmkit.estimate.calibration import Calibration, calibration_file, mode_of, this_machine
from llmkit.loop.forecast import forecast
from tests.estimate.test_calibration import RATES
from tests.estimate.test_step_time import LLAMA_8B, plan_of
from tests.program import make_project, train


def calibrate(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str, slower: float = 1.0) -> None:
    """A calibration of this machine where a run looks for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    machine, threads = this_machine(available_cores()), torch.get_num_threads()
    rates = replace(RATES, kernel=RATES.kernel * slower)
    found = Calibration(machine, threads, "2.13", "2026-11-30", {mode: rates})
    found.write(calibration_file(machine, threads, {"XDG_CACHE_HOME": str(folder / "cache")}))


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs/tiny" / name).read_text().splitlines()]


def test_the_first_steps_are_compared_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    calibrate(tmp_path, monkeypatch, mode_of("fp32", False), slower=1e4)
    monkeypatch.setattr("llmkit.loop.forecast.COMPARED", 4)
    assert train() == 0
    printed = capsys.readouterr().out
    (event,) = [row for row in rows(tmp_path, "events.jsonl") if row["event"] == "predicted"]
    assert (event["step"], event["steps"]) == (6, 4)  # the first one does not count
    assert event["predicted"] > 10 * event["measured"] > 0
    assert event["cause"] == "the model of time is too slow for this run: nothing is wrong with it"
    assert "forecast   " in printed
    assert " s were predicted; most likely because of the model" in printed
    with_it = [row for row in rows(tmp_path, "metrics.jsonl") if "step_seconds_predicted" in row]
    (said,) = {row["step_seconds_predicted"] for row in with_it}
    assert said == pytest.approx(event["predicted"], abs=1e-5)
    assert max(row["step"] for row in with_it) <= 6


@pytest.mark.parametrize("mode", [None, "bf16, compiled"])
def test_without_a_calibration_there_is_no_forecast_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], mode: str | None
) -> None:
    make_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if mode is not None:
        calibrate(tmp_path, monkeypatch, mode)
    assert train() == 0
    printed = " ".join(capsys.readouterr().out.split())
    why = "this CPU is not calibrated" if mode is None else "this CPU is calibrated for bf16, compiled only"
    assert printed.count(f"forecast none: {why}") == 1
    assert not [row for row in rows(tmp_path, "events.jsonl") if row["event"] == "predicted"]


def test_a_gpu_is_found_in_the_table_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(LLAMA_8B, {"global_batch_size": 16, "micro_batch_size": 1}, {"world_size": 16})
    mesh = SimpleNamespace(device=torch.device("cuda", 0), world_size=16, rank=0)
    launch = cast(Any, SimpleNamespace(mesh=mesh, local_size=8, environment={}))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    step, why = forecast(plan, launch)
    assert step is not None
    assert (step.devices, why) == (16, "")
    assert "stragglers" in {part.name for part in step.parts}  # of two nodes
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X9000")
    assert forecast(plan, launch) == (None, "NVIDIA X9000 is not in the table of devices")


def test_the_calibration_of_another_machine_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of(LLAMA_8B, {"global_batch_size": 1, "micro_batch_size": 1}, {"world_size": 1})
    machine, threads = this_machine(available_cores()), torch.get_num_threads()
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    other = Calibration(replace(machine, cpu="Another"), threads, "", "", {"fp32, not compiled": RATES})
    other.write(calibration_file(machine, threads, environment))
    mesh = SimpleNamespace(device=torch.device("cpu"), world_size=1, rank=0)
    step, why = forecast(plan, cast(Any, SimpleNamespace(mesh=mesh, local_size=1, environment=environment)))
    assert step is None
    assert f"the calibration of {machine.host}" in why
    assert "of Another), and this is" in why
