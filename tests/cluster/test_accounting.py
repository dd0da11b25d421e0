"""Jobs that have ended, as sacct tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.cluster.accounting import ended_jobs
from llmkit.cluster.words import state_in_words
from tests.cluster.programs import Programs
from tests.cluster.test_queue import row

TOLD = (
    row("12", "12", "COMPLETED", "2", "n[1-2]", "01:00:00", "demo", "llmkit /w/a b")
    + row("9_3", "11", "CANCELLED by 1000", "1", "n7", "00:05:00", "x", "llmkit /w/x")
    + row("8", "8", "FAILED", "1", "n1", "00:05:00", "other", "")
    + row("7", "7", "COMPLETED", "1", "n1", "00:05:00", "known", "llmkit /w/y")
)


def test_ours_that_the_queue_has_forgotten(programs: Programs) -> None:
    programs.say("sacct", TOLD)
    done, cancelled = ended_jobs({"7"})
    assert (done.number, done.state, done.nodes, done.run) == ("12", "COMPLETED", 2, Path("/w/a b"))
    assert (cancelled.number, cancelled.job_id, state_in_words(cancelled)) == ("9_3", "11", "cancelled")


def test_a_cluster_without_accounts(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.say("sacct", errors="Slurm accounting storage is disabled\n", code=1)
    assert ended_jobs(()) == []
    programs.say("sacct", errors="sacct: error: Unable to contact slurm controller\n", code=1)
    assert ended_jobs(()) == []
    monkeypatch.setenv("PATH", "/nowhere")
    assert ended_jobs(()) == []
