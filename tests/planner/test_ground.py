"""Devices of the command line; a CPU is the one that was measured on this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from llmkit.cli import main
from llmkit.config.load import load
from llmkit.cores import available_cores
from llmkit.errors import UserError
from llmkit.estimate.calibration import Calibration, calibration_file, mode_of, this_machine
from llmkit.estimate.hardware_file import read_hardware
from llmkit.planner.ground import measured
from tests.estimate.test_calibration import RATES

DEMO = str(Path(__file__).parents[2] / "configs/demo.yaml")
HERE = this_machine(available_cores())
FOUND = Calibration(HERE, 1, "2.13.0", "2026-11-30", {mode_of("fp32", False): RATES})


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["plan", DEMO, "--device", "cpu", *arguments]) == 2
    return capsys.readouterr().err


def test_a_calibrated_cpu_is_a_device(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    FOUND.write(calibration_file(HERE, 1, {"XDG_CACHE_HOME": str(tmp_path)}))
    assert main(["plan", DEMO, "--device", "cpu", "--json", "--best", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fleet"]["device"]["source"] == "measured on this machine"
    assert found["precision"] == "fp32", "bf16 was not measured"
    assert found["layouts"][0]["settings"]["parallel.engine"] == "native"
    assert found["layouts"][0]["step"]["seconds"] > 0
    assert found["launch"][0].startswith("llmkit train")
    tokens = 5 * 60 * found["layouts"][0]["step"]["tokens_per_second"]
    assert found["run"]["tokens"] == pytest.approx(tokens), "the demo has five minutes"
    assert found["run"]["expense"]["kwh"] is None, "nothing is known of its power"


def test_without_a_calibration_it_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "run llmkit doctor --calibrate, or name a file" in refusal(capsys)


def test_a_calibration_of_another_machine_is_refused_by_name(tmp_path, capsys):
    file = tmp_path / "other.json"
    replace(FOUND, machine=replace(HERE, host="node-b")).write(file)
    assert "is the calibration of node-b" in refusal(capsys, "--calibration", str(file))
    file.write_text("{}")
    assert str(file) in refusal(capsys, "--calibration", str(file))


def test_a_gpu_is_not_calibrated(capsys):
    assert main(["plan", DEMO, "--device", "h100", "--calibration", "x.json"]) == 2
    assert "--calibration goes with --device cpu" in capsys.readouterr().err


def test_the_file_of_the_documentation_is_read(tmp_path):
    text = (Path(DEMO).parents[1] / "docs/plan.md").read_text()
    file = tmp_path / "ours.yaml"
    file.write_text(text.split("## Devices of your own")[1].split("```yaml\n")[1].split("```")[0])
    found = read_hardware(file).fleet("h100-600w", nodes=2)
    assert (found.device.watts, found.between.name, found.between.ports) == (600, "campus", 2)


def test_the_mode_is_that_of_the_run():
    modes = {mode_of("fp32", False): RATES, mode_of("bf16", True): replace(RATES, byte=1.0)}
    both = replace(FOUND, modes=modes)
    config = load(DEMO).config
    rates, facts = measured(both, config)
    assert rates.byte == 1.0 and facts.has_bf16_units and facts.compiler_missing is None
    plain = load(DEMO, ["train.precision=fp32"]).config
    rates, facts = measured(both, plain)
    assert rates is RATES and facts.compiler_missing is not None
    with pytest.raises(UserError, match="and not for bf16; run llmkit doctor --calibrate --full"):
        measured(both, load(DEMO, ["train.precision=bf16", "kernels.compile=false"]).config)
