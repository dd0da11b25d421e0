"""Processes that have met but cannot connect name the hosts between which it fails."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch._C._distributed_c10d import HashStore

from llmkit.parallel import reach as module
from llmkit.parallel.rank_info import RankInfo
from llmkit.parallel.reach import Deadline, Reach
from tests.limits import HANG

HOSTS = ["n1", "n2", "n3"]


@pytest.fixture
def hosts(monkeypatch):
    """Three hosts with two ranks each, which are threads here, in one store."""
    store, names = HashStore(), iter(HOSTS)
    monkeypatch.setattr(module.socket, "gethostname", lambda: next(names))
    reaches = [Reach(store, RankInfo(rank, 6, rank % 2, 2), "127.0.0.1") for rank in range(6)]
    yield store, reaches
    for reach in reaches:
        reach.close()


def asked(reaches: list[Any]) -> list[str]:
    with ThreadPoolExecutor(len(reaches)) as threads:
        return list(threads.map(lambda reach: reach.unreachable(HANG), reaches))


def test_hosts_that_all_reach_each_other_have_nothing_to_say(hosts):
    _, reaches = hosts
    assert asked(reaches) == [""] * 6


def test_all_ranks_name_the_pairs_that_cannot_connect(hosts, monkeypatch):
    store, reaches = hosts
    n3 = json.loads(store.get("door/4"))["port"]
    connect = module.socket.create_connection

    def blocked(address: tuple[str, int], timeout: float) -> socket.socket:
        if address[1] == n3:
            raise TimeoutError
        return connect(address, timeout)

    monkeypatch.setattr(module.socket, "create_connection", blocked)
    said = set(asked(reaches))
    assert said == {f"n1 cannot connect to n3 and n2 cannot connect to n3: {module.REMEDY}"}


def test_a_host_that_has_given_up_is_not_taken_for_unreachable(hosts):
    store, reaches = hosts
    store.set("tried/4", json.dumps(["n3 cannot connect to n2"]))
    for rank in (4, 5):
        store.set(f"read/{rank}", "")
    reaches[4].close()
    assert set(asked(reaches[:4])) == {f"n3 cannot connect to n2: {module.REMEDY}"}


def test_the_process_that_may_keep_the_store_ends_last(hosts):
    _, reaches = hosts
    with ThreadPoolExecutor(len(reaches)) as threads:
        first = threads.submit(reaches[0].unreachable, HANG)
        others = [threads.submit(reach.unreachable, HANG) for reach in reaches[1:5]]
        assert [each.result() for each in others] == [""] * 4
        assert not first.done()
        assert reaches[5].unreachable(HANG) == first.result() == ""


def test_a_host_alone_needs_nothing():
    reach = Reach(HashStore(), RankInfo(0, 2, 0, 2), "")
    assert reach.unreachable(HANG) == ""
    reach.close()


class Shared(HashStore):
    """As the store of a launch, which threads have copies of."""

    def clone(self) -> Shared:
        return self


@pytest.mark.parametrize("late", [[1, 2, 3], [2]])
def test_what_does_not_connect_in_time_ends_the_process_and_is_named(capfd, late):
    store, ended, codes = Shared(), threading.Event(), list[int]()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    def deadline(rank: int, seconds: float) -> Deadline:
        info = RankInfo(rank, 4, rank, 4)
        return Deadline(store, info, Reach(store, info, ""), "NCCL", seconds, end)

    for rank in set(range(1, 4)) - set(late):
        with deadline(rank, HANG):
            pass
    with deadline(0, 0.01):
        assert ended.wait(HANG)
    assert codes == [1]
    names = "rank 0, rank 1, rank 2 and rank 3" if len(late) == 3 else "rank 0 and rank 2"
    expected = "none of 4 ranks" if len(late) == 3 else f"not {names} of 4"
    assert f"llmkit: NCCL has connected {expected} within 0.01 s; NCCL_DEBUG=INFO" in capfd.readouterr().err


def test_what_connects_in_time_is_left_alone():
    store, info = Shared(), RankInfo(0, 2, 0, 2)
    with Deadline(store, info, Reach(store, info, ""), "NCCL", HANG, end=pytest.fail):
        pass
    assert store.check(["NCCL/0"])
