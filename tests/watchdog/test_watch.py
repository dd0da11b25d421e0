"""Ranks that only beat, and the real processes that watch them: who is named, who is ended, what is left."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llmkit import proc
from llmkit.watchdog.watch import Watch, Watched
from tests.limits import HANG

ROOT = Path(__file__).parents[2]
CASES: dict[str, list[dict[str, Any]]] = {
    # name: the ranks
    "clean": [{"act": "nothing"}],
    "sleep": [{"act": "sleep"}],
    "gil": [{"act": "gil"}],
    "spin": [{"act": "spin"}],
    "recorded": [{"act": "until_on_record", "ends": False}],
    "killed": [{"act": "kill"}],
    "saves": [{"act": "pause", "phase": "save"}],
    "starts": [{"act": "pause", "phase": "start"}],
    "forked": [{"act": "fork"}],
    "one-dies": [{"act": "wait", "beats_on": 60.0}, {"act": "kill"}],
    "first-dies": [{"act": "kill"}, {"act": "wait"}],
    "dies-early": [{"act": "kill"}, {"act": "nothing", "late": True, "beats_on": 60.0}],
    "one-stopped": [{"act": "wait"}, {"act": "stop"}],
    "one-hangs": [{"act": "sleep"}, {"act": "wait"}],
    "both-wait": [{"act": "wait"}, {"act": "wait"}],
    "one-late": [{"act": "wait"}, {"act": "nothing", "beats_on": 8.0}],
    "two-clean": [{"act": "nothing"}, {"act": "nothing"}],
    "all-killed": [{"act": "sleep", "phase": "save"}, {"act": "sleep", "phase": "save"}],
    "all-stopped": [{"act": "stop"}, {"act": "stop"}],
}


class Started:
    """The ranks of a case, their output once they have ended, and the processes that watch them."""

    def __init__(self, folder: Path, ranks: list[dict[str, Any]]) -> None:
        self.folder = folder
        folder.mkdir()
        world, place, passed = len(ranks), None, list[int]()
        self.processes: list[subprocess.Popen[bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as server:
            if world > 1:
                passed = [server.fileno()]
                place = {"address": "127.0.0.1", "port": server.getsockname()[1], "token": "secret",
                         "host": "n0", "server": server.fileno()}  # fmt: skip
            common = {"ends": True, "run": str(folder), "world": world, "hub": place}
            for rank, order in enumerate(ranks):
                orders = json.dumps({**common, **order, "rank": rank})
                with (folder / f"out-{rank}").open("wb") as out, (folder / f"err-{rank}").open("wb") as err:
                    process = subprocess.Popen(
                        [sys.executable, "-m", "tests.watchdog.fake_rank", orders],
                        cwd=ROOT, stdout=out, stderr=err, pass_fds=passed if rank == 0 else [],
                    )  # fmt: skip
                self.processes.append(process)

    def output(self, rank: int) -> str:
        return (self.folder / f"out-{rank}").read_text()

    def error(self) -> str:
        return "".join((self.folder / f"err-{rank}").read_text() for rank in range(len(self.processes)))

    @property
    def watchers(self) -> list[int]:
        lines = [self.output(rank).splitlines() for rank in range(len(self.processes))]
        return [int(each[0]) for each in lines if each]

    def codes(self) -> list[int]:
        return [process.wait(HANG) for process in self.processes]

    def events(self) -> list[dict[str, Any]]:
        file = self.folder / "events.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def event(self) -> dict[str, Any]:
        (event,) = self.events()
        return event

    def stack(self, rank: int) -> str:
        return (self.folder / "logs" / "stacks-7" / f"rank-{rank:05d}.txt").read_text()


def until(holds) -> None:
    last = time.monotonic() + HANG
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.05)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Started]:
    """All cases at once: most of their time is waiting."""
    folder = tmp_path_factory.mktemp("watched")
    found = {name: Started(folder / name, ranks) for name, ranks in CASES.items()}
    until(lambda: all(len(case.watchers) == len(case.processes) for case in found.values()))
    for process in found["all-killed"].processes:
        process.send_signal(signal.SIGKILL)
    stopped = found["all-stopped"].processes
    until(lambda: all(proc.state(process.pid) == "T" for process in stopped))
    time.sleep(3.0)
    for process in stopped:
        process.send_signal(signal.SIGCONT)
    dying = [found[name] for name in ("killed", "forked", "one-dies", "first-dies", "dies-early")]
    until(lambda: all(case.events() for case in dying))  # how a process ended is told until it is waited for
    for case in found.values():
        case.codes()
    return found


def test_no_watching_process_outlives_its_run(started):
    watchers = [pid for case in started.values() for pid in case.watchers]
    assert len(watchers) == sum(map(len, CASES.values()))
    until(lambda: not any(proc.state(pid) not in ("", "Z") for pid in watchers))
    assert not [name for name in os.listdir("/dev/shm") if "llmkit" in name]


@pytest.mark.parametrize("name", ["clean", "two-clean", "saves", "starts", "one-late", "all-stopped"])
def test_what_only_takes_long_is_no_fault(started, name):
    case = started[name]
    assert case.events() == [] and not (case.folder / "logs").exists()
    assert set(case.codes()) == {0} and case.error() == ""


@pytest.mark.parametrize(
    ("name", "place"), [("sleep", "<lambda>"), ("spin", "spin"), ("gil", "hold_the_gil")]
)
def test_a_rank_alone_that_hangs_is_ended_with_its_stacks_saved(started, name, place):
    case = started[name]
    assert case.codes() == [1]
    event = case.event()
    assert (event["event"], event["rank"], event["step"], event["phase"]) == ("hung_rank", 0, 9, "step")
    assert f"hangs in {place} (fake_rank.py:" in event["reason"] and event["seconds"] >= 1.0
    assert event["stacks"] == "logs/stacks-7"
    assert "(most recent call first)" in case.stack(0) and "fake_rank.py" in case.stack(0)
    assert "state " in case.stack(0)
    assert event["reason"] in case.error() and event["reason"] in case.output(0)


def test_where_the_process_is_not_llmkits_own_a_hang_is_only_on_record(started):
    case = started["recorded"]
    assert case.codes() == [0]
    assert case.event()["event"] == "hung_rank" and "fake_rank.py" in case.stack(0)


@pytest.mark.parametrize("name", ["killed", "forked"])
def test_a_rank_alone_that_is_killed_is_on_record(started, name):
    """Also while a child that it has forked lives on."""
    case = started[name]
    assert case.codes() == [-signal.SIGKILL]
    until(case.events)
    assert case.event()["event"] == "dead_rank" and "SIGKILL" in case.event()["reason"]


@pytest.mark.parametrize(("name", "rank"), [("one-dies", 1), ("first-dies", 0), ("dies-early", 0)])
def test_a_rank_that_dies_is_named_with_its_signal_to_the_others(started, name, rank):
    """Also to one whose watching process starts only then."""
    case = started[name]
    event = case.event()
    assert (event["event"], event["ranks"]) == ("dead_rank", [rank])
    assert "was ended by SIGKILL" in event["reason"]
    assert case.error().count("SIGKILL") == 1
    assert name == "first-dies" or f"verdict: {event['reason']}" in case.output(1 - rank)


@pytest.mark.parametrize(("name", "rank", "what"), [("one-stopped", 1, "is stopped (SIGSTOP)"),
                                                    ("one-hangs", 0, "hangs in <lambda>")])  # fmt: skip
def test_a_rank_that_others_wait_for_is_named_and_the_stacks_of_all_are_saved(started, name, rank, what):
    case = started[name]
    event = case.event()
    assert (event["event"], event["ranks"]) == ("hung_rank", [rank])
    assert f"rank {rank} (" in event["reason"] and what in event["reason"]
    assert f"rank {1 - rank} waits in wait (fake_rank.py:" in event["reason"]
    assert all("fake_rank.py" in case.stack(each) for each in range(2))
    assert case.codes()[rank] == 1


def test_ranks_that_wait_for_each_other_are_told_with_their_places(started):
    case = started["both-wait"]
    event = case.event()
    assert event["ranks"] == [] and event["reason"].startswith("all ranks wait for each other")
    assert case.codes() == [1, 1]


def test_where_no_process_can_be_started_nothing_is_left(tmp_path, monkeypatch):
    def refused(*arguments: Any, **named: Any) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr("llmkit.watchdog.watch.subprocess.Popen", refused)
    before = os.listdir("/proc/self/fd")
    watch = Watch(("start",))
    with pytest.raises(OSError):
        watch.start(Watched(tmp_path))
    watch.beat("start")
    watch.close()
    assert os.listdir("/proc/self/fd") == before
