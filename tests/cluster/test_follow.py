"""`llmkit submit --follow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.cluster.follow import follow_job
from tests.cluster.programs import Programs


def facts(state: str, log: Path, code: str = "0:0", reason: str = "None") -> str:
    return f"JobId=12 JobName=x\n   JobState={state} Reason={reason} ExitCode={code}\n   StdOut={log}\n"


def test_the_log_is_shown_until_the_job_ends(
    programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "slurm-12.out"
    states = iter(
        [("PENDING", "", "Priority"), ("RUNNING", "one\n", "None"), ("FAILED", "two\n", "NonZeroExitCode")]
    )
    shown = list[bytes]()

    def next_state(seconds: float) -> None:
        state, text, reason = next(states)
        with log.open("a") as file:
            file.write(text)
        programs.say("scontrol", facts(state, log, "75:0" if state == "FAILED" else "0:0", reason))

    next_state(0)
    assert follow_job("12", 0.0, shown.append, next_state) == 75
    assert b"".join(shown) == b"one\ntwo\n"
    assert capsys.readouterr().err == "job 12: waits: others come first\njob 12: failed, exit code 75\n"


@pytest.mark.parametrize(
    ("state", "code", "end"),
    [("COMPLETED", "0:0", 0), ("CANCELLED", "0:15", 1), ("FAILED", "2:0", 2), ("TIMEOUT", "0:1", 1)],
)
def test_the_exit_code_is_that_of_the_job(
    programs: Programs, tmp_path: Path, state: str, code: str, end: int
) -> None:
    programs.say("scontrol", facts(state, tmp_path / "none", code))
    assert follow_job("12", 0.0, print) == end


def test_ctrl_c_leaves_the_job_alone(
    programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    programs.say("scontrol", facts("RUNNING", tmp_path / "none"))

    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    assert follow_job("12", 0.0, print, interrupt) == 0
    assert "job 12 goes on" in capsys.readouterr().err
    assert programs.calls("scancel") == []


def test_a_controller_that_does_not_answer_for_a_while_ends_nothing(
    programs: Programs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "slurm-12.out"
    log.write_text("all of it\n")
    away = "slurm_load_jobs error: Socket timed out on send/recv operation\n"
    answers = iter([(away, 1, ""), ("slurm_load_jobs error: Access denied\n", 1, ""), ("", 0, "EXPEDITING")])

    def next_answer(seconds: float) -> None:
        errors, code, state = next(answers, ("", 0, "CANCELLED"))
        programs.say("scontrol", facts(state, log), errors, code)

    next_answer(0)
    shown = list[bytes]()
    assert follow_job("12", 0.0, shown.append, next_answer) == 1
    assert b"".join(shown) == b"all of it\n"
    away, denied, end = capsys.readouterr().err.splitlines()
    assert "does not answer scontrol" in away and "asked again every 10 s" in away
    assert "Access denied" in denied and end == "job 12: cancelled, exit code 1"


def test_a_job_that_slurm_has_forgotten_has_ended(programs: Programs) -> None:
    programs.say("scontrol", errors="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert follow_job("12", 0.0, print) == 1
