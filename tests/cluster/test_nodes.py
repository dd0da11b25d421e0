"""What is asked of SLURM about the nodes of a job; its answers are as version 22.05 gives them."""

from __future__ import annotations

import re

import pytest

from llmkit.cluster import nodes
from llmkit.cluster.nodes import CannotLeaveOut, exclusion, lost, services
from llmkit.errors import RunFault
from llmkit.slurm import Answer

NODES = """\
NodeName=n1 Arch=x86_64 CPUAlloc=0 Gres=gpu:4 State=IDLE ThreadsPerCore=1 Partitions=main,urgent \
BootTime=2026-11-29T00:08:46 SlurmdStartTime=2026-11-29T20:01:02 LastBusyTime=2026-11-29T20:01:10
NodeName=n2 Arch=x86_64 State=DOWN+NOT_RESPONDING ThreadsPerCore=1 SlurmdStartTime=2026-11-29T20:01:02
NodeName=n3 State=ALLOCATED+NOT_RESPONDING SlurmdStartTime=2026-11-29T20:01:02
NodeName=n4 State=ALLOCATED+DRAIN SlurmdStartTime=2026-11-29T20:44:00
"""


@pytest.fixture
def slurm(monkeypatch):
    """The answers of SLURM by the first words of a command."""
    answers: dict[str, str] = {}

    def ask(*command: str, **_: object) -> Answer:
        for words, answer in answers.items():
            if " ".join(command).startswith(words):
                return Answer(answer, "")
        raise RunFault("SLURM's controller does not answer")

    monkeypatch.setattr(nodes, "ask", ask)
    monkeypatch.setattr("llmkit.slurm.ask", ask)
    return answers


def test_nodes_that_are_away_or_have_started_anew_are_lost(slurm):
    slurm["scontrol show node"] = NODES
    now = services("n[1-4]")
    assert now == {"n1": "2026-11-29T20:01:02", "n2": "down", "n3": "down", "n4": "2026-11-29T20:44:00"}
    before = dict.fromkeys(now, "2026-11-29T20:01:02")
    assert lost(before, now) == ["n2", "n3", "n4"]
    assert lost(now | {"n2": "down"}, {"n1": "2026-11-29T20:01:02"}) == []
    assert lost({}, {"n1": "2026-11-29T20:01:02"}) == []  # nothing is known of before


@pytest.fixture
def cluster(slurm):
    """A partition of four nodes, one of which is down, and a job of two nodes."""
    slurm["squeue"] = "||main\n"
    slurm["sinfo"] = "n1 alloc\nn2 mix#\nn3 idle~\nn4 down*\n"
    slurm["scontrol show hostnames n[5-6]"] = "n5\nn6\n"
    return slurm


def test_a_node_is_left_out_where_enough_others_remain(cluster):
    assert exclusion("7", ["n2"], 2) == "n2"


def test_nodes_that_are_left_out_already_stay_so(cluster):
    cluster["squeue"] = "|n[5-6]|main\n"
    assert exclusion("7", ["n2"], 2) == "n2,n5,n6"


@pytest.mark.parametrize(
    ("job", "count", "hosts", "why"),
    [
        ("||main", 3, ["n2"], "without n2 2 nodes of main are left, and 3 are needed"),
        ("||main", 2, ["n1", "n2"], "without n1, n2 1 nodes of main are left, and 2 are needed"),
        ("n[1-2]||main", 2, ["n2"], "the job asks for n[1-2] by name"),
        ("", 2, ["n2"], "SLURM does not answer"),
    ],
)
def test_a_node_that_cannot_be_left_out_is_not(cluster, job, count, hosts, why):
    cluster["squeue"] = job
    with pytest.raises(CannotLeaveOut, match=re.escape(why)):
        exclusion("7", hosts, count)


def test_where_slurm_does_not_answer_that_is_said(slurm):
    with pytest.raises(CannotLeaveOut, match="SLURM does not answer"):
        exclusion("7", ["n2"], 2)
    assert services("n[1-2]") == {}
