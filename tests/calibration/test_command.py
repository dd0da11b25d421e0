"""The command that measures a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmkit.calibration.command import calibrate_command
from llmkit.cli import main
from llmkit.cores import available_cores
from llmkit.errors import UserError
from llmkit.estimate.calibration import CpuRates, calibration_file, read_calibration, this_machine
from tests.estimate.test_calibration import RATES


@pytest.mark.parametrize("full", [False, True])
def test_what_was_measured_is_kept_where_runs_look(
    tmp_path: Path, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, bool]] = []

    def measure(precision: str, compiled: bool) -> CpuRates:
        measured.append((precision, compiled))
        return RATES

    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    assert calibrate_command("", full, environment, measure) == 0
    machine, threads = this_machine(available_cores()), torch.get_num_threads()
    found = read_calibration(calibration_file(machine, threads, environment), machine, threads)
    assert len(found.modes) == len(measured)
    assert len({precision for precision, _ in measured}) == 1 or full
    assert all(found.rates(*mode) == RATES for mode in measured)
    out = capsys.readouterr().out
    assert f"the CPU of {machine}" in out
    assert "GFLOP/s" in out
    assert str(tmp_path) in out


def test_a_file_that_cannot_be_written_is_named_before_anything_is_measured(tmp_path: Path) -> None:
    def never(precision: str, compiled: bool) -> CpuRates:
        raise AssertionError("measured")

    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file/below/it.json"):
        with pytest.raises(UserError, match=f"--calibrate cannot write {path}"):
            calibrate_command(str(path), False, {}, never)


def test_the_option_reaches_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "llmkit.calibration.command.calibrate_command",
        lambda file, full, environment: asked.append((file, full)) or 0,
    )
    assert main(["doctor", "--calibrate"]) == 0
    assert main(["doctor", "--calibrate", "there.json", "--full"]) == 0
    assert asked == [("", False), ("there.json", True)]
