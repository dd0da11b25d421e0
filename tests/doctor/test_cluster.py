"""The nodes of a step by threads of this process, over real connections: well, hung, dead, absent, odd."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from llmkit.doctor import cluster, disk
from llmkit.doctor.cluster import clock_findings, reach_findings, reports_of_all
from llmkit.doctor.compare import compare, sick_nodes
from llmkit.doctor.findings import Finding, Report
from llmkit.doctor.meeting import follow
from llmkit.doctor.participant import Participant
from llmkit.doctor.scope import Scope
from llmkit.doctor.step import Step
from llmkit.errors import RunFault
from tests.limits import HANG

NUMBER = itertools.count()
LEADER = "localhost"
"""Node names are looked up."""


class Node(Participant):
    """Without processes for collectives. unusual: question -> what is done instead of the answer."""

    def __init__(self, node: str, unusual: dict[str, Callable[[], Any]] | None = None) -> None:
        super().__init__(
            node, lambda: Report(node, (Finding("torch", "ok", "2.13.0", compared="must"),)), HANG
        )
        self._unusual = unusual or {}

    def answer(self, question: str, content: Any) -> Any:
        if question in self._unusual:
            return self._unusual[question]()
        if question == "ready":
            return 1
        if question == "join":
            return [{"rate": 1e9, "joined": 0.1, "backend": f"rank {content[2]} of {content[3]}"}]
        return super().answer(question, content)


@contextmanager
def followers(step: Step, *nodes: Node) -> Iterator[None]:
    """The other nodes, each in a thread of its own."""

    def run(node: Node) -> None:
        with suppress(RunFault, EOFError):
            follow(step, node)

    threads = [threading.Thread(target=run, args=(node,), daemon=True) for node in nodes]
    for thread in threads:
        thread.start()
    yield
    for node in nodes:
        node.close()
    for thread in threads:
        thread.join(HANG)


def a_step(*others: str) -> Step:
    return Step(f"{os.getpid() * 50 + next(NUMBER)}.0", (LEADER, *others), 0)


def checked(
    folder: Path, *nodes: Node, absent: tuple[str, ...] = (), come: float = HANG
) -> dict[str, Report]:
    step = a_step(*(node.node for node in nodes), *absent)
    with followers(step, *nodes), closing(Node(LEADER)) as own:
        reports = reports_of_all(step, own, Scope(str(folder), seconds=HANG), come)
    assert [report.node for report in reports] == list(step.nodes)
    return {report.node: report for report in reports}


def value(report: Report, name: str) -> str:
    found = report.find(name)
    assert found is not None
    return found.value


def test_all_nodes_answer_and_are_compared_in_clocks_reach_locks_and_collectives(tmp_path: Path) -> None:
    reports = checked(tmp_path, Node("n2"), Node("n3"))
    assert {report.state for report in reports.values()} == {"ok"}
    for node, rank in ((LEADER, 0), ("n2", 1), ("n3", 2)):
        assert value(reports[node], "torch") == "2.13.0"
        assert value(reports[node], "reach") == "all of 2 others"
        assert value(reports[node], "collectives").startswith(f"rank {rank} of 3 over 3 processes on 3 nodes")
        assert "+0.000 s" in value(reports[node], "clocks") or "-0.000 s" in value(reports[node], "clocks")
    assert value(reports["n3"], "locks of nodes") == f"a lock of {LEADER} keeps it out"
    assert reports[LEADER].find("locks of nodes") is None and os.listdir(tmp_path) == []


def test_nodes_that_hang_die_or_do_not_come_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "MORE_SECONDS", 2.0)
    over = threading.Event()

    def dies() -> None:
        raise EOFError

    hung, dead = Node("hung", {"check": lambda: over.wait(HANG)}), Node("dead", {"check": dies})
    other = Node("other", {"check": lambda: {"node": "other", "findings": "of another version"}})
    step_nodes = (hung, dead, other, Node("well"))
    step = a_step(*(node.node for node in step_nodes), "absent")
    with followers(step, *step_nodes), closing(Node(LEADER)) as own:
        reports = {
            each.node: each for each in reports_of_all(step, own, Scope(str(tmp_path), seconds=0.0), 4.0)
        }
        over.set()
    assert value(reports["hung"], "answer") == "no answer in time (check)"
    assert value(reports["dead"], "answer") == "its process has ended (check)"
    assert value(reports["other"], "answer") == "it is no report (check)"
    assert value(reports["absent"], "answer") == "it has not come within 4 s"
    assert value(reports["well"], "collectives").startswith("rank 1 of 2 ")
    assert sick_nodes(compare(list(reports.values()))) == ["absent", "dead", "hung", "other"]


def test_a_node_that_dies_in_a_collective_keeps_what_it_has_said(tmp_path: Path) -> None:
    def dies() -> None:
        raise EOFError

    reports = checked(tmp_path, Node("n2", {"join": dies}), Node("n3"))
    assert value(reports["n2"], "torch") == "2.13.0"
    assert value(reports["n2"], "answer") == "its process has ended (join)"
    assert reports["n3"].state == "ok"


def test_a_collective_that_fails_on_all_is_no_fault_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: dict[str, Callable[[], Any]] = {"join": lambda: [{"error": "DistError: no route"}]}
    monkeypatch.setattr(Node, "__init__", lambda self, node, unusual=None: _with(self, node, failed))
    reports = compare(list(checked(tmp_path, Node("n2")).values()))
    assert [report.state for report in reports] == ["fail", "fail"] and sick_nodes(reports) == []
    assert "NCCL_SOCKET_IFNAME" in next(reports[0].of_state("fail")).advice


def _with(node: Node, name: str, unusual: dict[str, Callable[[], Any]]) -> None:
    Participant.__init__(node, name, lambda: Report(name, ()), HANG)
    node._unusual = unusual


def test_strangers_are_not_let_in(tmp_path: Path) -> None:
    step = a_step("n2")
    node = Node("n2")
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            for sent in (b"GET / HTTP/1.1\r\n\r\n", b'["hello", "other step", "n2", 1]\n', b'["hello"]\n'):
                with (
                    suppress(OSError),
                    socket.create_connection((LEADER, step.ports[0]), timeout=1.0) as stranger,
                ):
                    stranger.sendall(sent)
                    stranger.recv(10)

    thread = threading.Thread(target=disturb, daemon=True)
    thread.start()
    with followers(step, node), closing(Node(LEADER)) as own:
        reports = reports_of_all(step, own, Scope(str(tmp_path)), HANG)
    stop.set()
    thread.join(HANG)
    assert [report.state for report in reports] == ["ok", "ok"]


def test_a_lock_that_keeps_nobody_out_is_remarked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.fcntl, "flock", lambda *arguments: None)
    reports = checked(tmp_path, Node("n2"))
    assert value(reports["n2"], "locks of nodes") == f"a lock of {LEADER}: it keeps nobody out"
    assert reports["n2"].state == "warn"


def test_a_clock_is_measured_against_those_of_most() -> None:
    found = clock_findings({"n1": (0.0, 0.0), "n2": (3600.0, 0.01), "n3": (0.2, 0.4), "n4": (-0.1, 0.0)})
    assert [each.state for each in found.values()] == ["ok", "warn", "ok", "ok"]
    assert found["n2"].value == "+3599.900 s from the others', measured to 0.010 s"
    for others in ({}, {"n3": (0.1, 0.0)}):  # an answer that took 18 s proves nothing
        slow = clock_findings({"n1": (0.0, 0.0), "n2": (10.0, 9.0), **others})
        assert {each.state for each in slow.values()} == {"ok"}


def test_pairs_that_do_not_reach_each_other_are_named() -> None:
    found = reach_findings(["n1", "n2", "n3"], {frozenset(("n2", "n3"))}, ["n1", "n2", "n3"])
    assert [each.state for each in found.values()] == ["ok", "warn", "fail"]
    assert found["n2"].value == "no connection with n3" and found["n3"].value == "no connection with n2"
