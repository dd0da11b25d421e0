"""`llmkit jobs` with programs that stand for SLURM's; tests/slurm has a real one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from llmkit.cli import main
from tests.cluster.programs import Programs
from tests.cluster.test_queue import row
from tests.watch.folders import make_run


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs/one", steps=5)
    make_run(tmp_path / "runs/two", steps=4, end={"event": "stop", "step": 4, "reason": "SIGTERM"})
    return tmp_path / "runs"


def test_each_job_with_its_run(programs: Programs, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs.say(
        "squeue",
        row(
            "10",
            "10",
            "RUNNING",
            "None",
            "2",
            "n[1-2]",
            "0:50",
            "1:10",
            "x",
            "(null)",
            "one",
            "(null)",
            f"llmkit {runs}/one",
        )
        + row(
            "12",
            "12",
            "PENDING",
            "Priority",
            "4",
            "",
            "0:00",
            "1:00",
            "N/A",
            "(null)",
            "new",
            "(null)",
            f"llmkit {runs}/new",
        )
        + row(
            "9",
            "9",
            "FAILED",
            "NonZeroExitCode",
            "1",
            "n1",
            "0:50",
            "0:10",
            "x",
            "(null)",
            "two",
            "(null)",
            f"llmkit {runs}/two",
        ),
    )
    programs.say("squeue", "10 2\n12 0\n", given="RestartCnt")
    assert main(["jobs"]) == 0
    heading, one, new, two = capsys.readouterr().out.splitlines()
    assert heading.split() == ["job", "state", "run", "step", "loss", "tokens/s", "nodes", "left", "restarts"]
    assert one.split() == [
        "10",
        "running",
        "runs/one",
        "5/100",
        "5.0000",
        "2.0k",
        "2",
        "n[1-2]",
        "1:10",
        "2",
        "started",
    ]
    assert new.split() == ["12", "waiting", "new", "4", "1:00", "others", "come", "first"]
    assert two.split()[:3] == ["9", "failed", "runs/two"] and two.endswith("stopped by SIGTERM after step 4")
    assert main(["jobs", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["job"]["restarts"] == 2 and first["run"]["step"] == 5 and first["what"] == "started"


def test_a_job_whose_run_has_not_begun(
    programs: Programs, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("1", "n1", "0:02", "1:00", "x", "(null)", "new", "(null)", f"llmkit {runs}/new")
    programs.say("squeue", row("10", "10", "RUNNING", "None", *place) + row("9", "9", "FAILED", "x", *place))
    assert main(["jobs"]) == 0
    _, running, failed = capsys.readouterr().out.splitlines()
    assert running.split() == ["10", "running", "new", "1", "n1", "1:00", "is", "starting"]
    assert re.fullmatch(r"9 +failed +new +1 n1 +ended before its run began; its log says why", failed)


def test_a_job_that_went_back_into_the_queue_says_why(
    programs: Programs, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ("1", "", "0:00", "1:00", "N/A", "(null)", "two", "(null)", f"llmkit {runs}/two")
    programs.say("squeue", row("10", "10", "PENDING", "Resources", *place))
    programs.say("squeue", "10 1\n", given="RestartCnt")
    assert main(["jobs"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.endswith("waits for free nodes; before: stopped by SIGTERM after step 4")


def test_no_jobs_and_no_slurm(
    programs: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.say("squeue")
    assert main(["jobs"]) == 0
    assert capsys.readouterr() == ("", "you have no llmkit jobs in the queue\n")
    assert main(["jobs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["jobs"]) == 2
    assert "there is no squeue here" in capsys.readouterr().err
