"""SLURM's words in ours."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from llmkit.cluster.queue import SlurmJob
from llmkit.cluster.words import start_time, state_in_words, waiting_text, why_waiting

NOW = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)
JOB = SlurmJob("12", "12", "PENDING", "Resources", 2, "", "0:00", "1:00", "N/A", "", "demo", 0, None)


@pytest.mark.parametrize(
    ("reason", "dependency", "text"),
    [
        ("Resources", "", "waits for free nodes"),
        ("Dependency", "afterok:7(unfulfilled)", "waits for afterok:7"),
        (
            "DependencyNeverSatisfied",
            "afterok:7(failed)",
            "will never start: afterok:7 cannot come true; scancel 12 ends it",
        ),
        ("QOSMaxGRESPerUser", "", "a limit of the quality of service is reached (QOSMaxGRESPerUser)"),
        ("AssocGrpCpuLimit", "", "a limit of the account is reached (AssocGrpCpuLimit)"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n3",
            "",
            "a node that it asks for is down, drained or reserved (UnavailableNodes:n3)",
        ),
        (
            "job_requeued_in_held_state",
            "",
            "held after its last start, the end of its log may say why; free it by scontrol release 12",
        ),
        ("SomethingNew", "", "SomethingNew"),
    ],
)
def test_why_a_job_waits(reason: str, dependency: str, text: str) -> None:
    assert why_waiting(replace(JOB, reason=reason, dependency=dependency), NOW) == text


def test_when_it_will_probably_begin() -> None:
    job = replace(JOB, starts="2026-11-29T14:30:00")
    assert why_waiting(job, NOW) == "waits for free nodes; about 14:30"
    assert start_time("N/A", NOW) == start_time("", NOW) == ""
    facts = {"JobState": "PENDING", "Reason": "Dependency", "Dependency": "(null)", "StartTime": "Unknown"}
    assert waiting_text(facts, NOW) == "waits for another job"


def test_jobs_that_do_not_wait() -> None:
    assert why_waiting(replace(JOB, state="RUNNING"), NOW) == waiting_text({"JobState": "RUNNING"}, NOW) == ""
    assert [state_in_words(replace(JOB, state=state)) for state in ("PENDING", "NODE_FAIL", "BOOT_FAIL")] == [
        "waiting",
        "node failed",
        "boot fail",
    ]
