"""`llmkit doctor`: a page about this machine that is safe to show, and the check of nodes before a job."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from llmkit.cli import main
from tests import program
from tests.limits import HANG


def test_it_tells_versions_devices_speeds_wandb_and_disk(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0123456789secret")
    monkeypatch.setenv("NCCL_DEBUG", "x-0123456789secret")
    assert main(["doctor", "--seconds", "600"]) == 0
    out = capsys.readouterr().out
    lines = {line[6:22].strip(): line[22:] for line in out.splitlines()}
    assert lines["torch"] == torch.__version__
    assert "cores" in lines["cpu"] and "gloo" in lines["backends"] and "GiB free" in lines["free"]
    wanted = "llmkit deepspeed gpus precision products energy slurm interfaces torch.compile"
    assert {*wanted.split(), "wandb mode", "memory copy", "disk speed", "open files"} <= set(lines)
    assert "secret" not in out


def test_nodes_are_checked_into_a_folder_and_compared(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node is checked; of a second one what it wrote is changed."""
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert (
        main(
            [
                "doctor",
                "--node",
                "--seconds",
                "600",
                "--into",
                "found",
                "--run-folder",
                "runs/tiny",
                "--config",
                "tiny.yaml",
            ]
        )
        == 0
    )
    assert capsys.readouterr().out == ""
    report = json.loads((project / "found" / "n1.json").read_text())
    names = {each["name"] for each in report["findings"]}
    assert {"torch", "config", "gpus", "products", "disk speed", "shared folder"} <= names
    assert main(["doctor", "--table", "found", "--nodes", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sick:"
    other = json.dumps(report).replace(torch.__version__, "2.9.0").replace('"n1"', '"n2"')
    (project / "found" / "n2.json").write_text(other)
    assert main(["doctor", "--table", "found", "--nodes", "3"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "sick: n2 unknown-1"
    assert f"FAIL  torch           2.9.0; n1 has {torch.__version__}" in lines
    assert main(["doctor", "--table", "found", "--nodes", "2", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["sick"] == ["n2"]
    assert list((project / "runs" / "tiny").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--all"], "--all goes with --parity"),
        (["--into", "found"], "--into goes with --node"),
        (["--nodes", "2"], "--nodes goes with --table"),
        (["--node"], "--node needs --into FOLDER"),
        (["--table", "absent"], "cannot read absent"),
        (["--parity", "--json"], "--parity goes without --json"),
        (["--calibrate", "--json"], "--calibrate goes without --json"),
        (["--calibrate", "here.json", "--json"], "--calibrate goes without --json"),
        (["--node", "--into", "found", "--json"], "goes without --json"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_job_that_ends_leaves_nothing_behind(project: Path) -> None:
    process = subprocess.Popen([sys.executable, "-m", "llmkit", "doctor"], env=program.environment())
    started: list[psutil.Process] = []
    end = time.monotonic() + HANG
    while not started:
        assert process.poll() is None and time.monotonic() < end
        started = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG) == 128 + signal.SIGTERM
    _, left = psutil.wait_procs(started, HANG)
    assert left == []
