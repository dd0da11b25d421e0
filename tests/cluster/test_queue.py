"""The queue, as squeue and scontrol tell of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.cluster.queue import comment_of, job_facts, log_of, running_first, user_jobs
from llmkit.errors import RunFault
from tests.cluster.programs import Programs


def row(*fields: str) -> str:
    return "\x1f".join(fields) + "\n"


WAITING = row(
    "12",
    "12",
    "PENDING",
    "Resources",
    "2",
    "",
    "0:00",
    "1-00:00:00",
    "N/A",
    "(null)",
    "demo",
    "(null)",
    "llmkit /w/a b",
)
RUNNING = row(
    "9_3",
    "11",
    "RUNNING",
    "None",
    "1",
    "n7",
    "5:00",
    "55:00",
    "2026-11-29T10:00:00",
    "(null)",
    "x",
    "(null)",
    "llmkit /w/x",
)
BY_HAND = row(
    "8",
    "8",
    "COMPLETED",
    "None",
    "1",
    "n1",
    "1:00",
    "INVALID",
    "x",
    "(null)",
    "llmkit",
    "/w/slurm/train.sbatch",
    "",
)
ANOTHER = row(
    "7", "7", "RUNNING", "None", "1", "n1", "1:00", "1:00", "x", "(null)", "bash", "/w/other.sh", "llmkits"
)


def test_only_our_jobs_are_told_of(programs: Programs) -> None:
    programs.say("squeue", WAITING + "odd line\n" + ANOTHER + BY_HAND + RUNNING)
    programs.say("squeue", "12   0 \n11     3\n", given="RestartCnt")
    jobs = running_first(user_jobs())
    assert [job.number for job in jobs] == ["9_3", "12", "8"]
    running, waiting, by_hand = jobs
    assert running.run == Path("/w/x") and (running.nodes, running.hosts, running.restarts) == (1, "n7", 3)
    assert waiting.run == Path("/w/a b") and waiting.dependency == "" and waiting.reason == "Resources"
    assert by_hand.run is None


def test_a_queue_that_does_not_answer_is_a_fault(programs: Programs) -> None:
    programs.say("squeue", errors="slurm_load_jobs error: Access denied\n", code=1)
    with pytest.raises(RunFault, match=r"squeue: .*Access denied"):
        user_jobs()


def test_comments_are_as_long_as_slurm_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/usr")
    assert comment_of("runs/demo") == "llmkit /usr/runs/demo"
    assert comment_of("x" * 1000) == "llmkit"
    assert comment_of("x\n#SBATCH --wrap=y") == "llmkit"


SHOWN = """\
JobId=2 JobName=odd name JobState=fake
   UserId=root(0) GroupId=root(0)
   JobState=PENDING Reason=Priority Dependency=afterok:1(unfulfilled)
   StdOut=/w/a b/slurm-2.out
   Comment=llmkit /w/x JobState=COMPLETED

JobId=3 JobState=RUNNING
"""


@pytest.mark.parametrize(
    ("facts", "log"),
    [
        ({"JobId": "2", "StdOut": "/w/slurm-2.out"}, "/w/slurm-2.out"),
        ({"JobId": "2", "StdOut": "/w/%x-%j%%.out", "JobName": "a b"}, "/w/a b-2%.out"),
        ({"JobId": "2", "ArrayTaskId": "0-3", "StdOut": "/w/x-2-4294967294.log"}, "/w/x-2-TASK.log"),
        (
            {"JobId": "3", "ArrayJobId": "2", "ArrayTaskId": "0-3%2", "StdOut": "/w/%A_%a.out"},
            "/w/2_TASK.out",
        ),
        ({"JobId": "3", "ArrayJobId": "2", "ArrayTaskId": "1", "StdOut": "/w/%A_%a.out"}, "/w/2_1.out"),
        ({}, ""),
    ],
)
def test_logs_of_old_and_new_versions(facts: dict[str, str], log: str) -> None:
    assert log_of(facts) == log


def test_facts_of_a_job(programs: Programs) -> None:
    programs.say("scontrol", SHOWN)
    facts = job_facts("2")
    assert facts["JobName"] == "odd name JobState=fake"
    assert facts["StdOut"] == "/w/a b/slurm-2.out" and facts["Reason"] == "Priority"
    programs.say("scontrol", errors="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert job_facts("2") == {}
    programs.say("scontrol", errors="slurm_load_jobs error: Access denied\n", code=1)
    with pytest.raises(RunFault, match="Access denied"):
        job_facts("2")
