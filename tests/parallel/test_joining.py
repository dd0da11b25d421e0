"""Ranks that meet in a store which an earlier start has used."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore, Store

from llmkit.errors import UserError
from llmkit.parallel import joining
from llmkit.parallel.joining import join_start
from tests.limits import HANG

LIMIT = timedelta(seconds=HANG)
SOON = timedelta(seconds=0.2)


def start(store: Store, order: list[int]) -> dict[int, Store]:
    """All ranks of a start; those that come later wait until the others poll."""
    with ThreadPoolExecutor(len(order)) as threads:
        joining = {rank: threads.submit(join_start, store, rank, len(order), LIMIT) for rank in order}
        return {rank: future.result(HANG) for rank, future in joining.items()}


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_all_ranks_of_a_start_share_a_part_of_the_store(order):
    parts = start(HashStore(), order)
    parts[1].set("address", "of rank 1")
    assert [part.get("address") for part in parts.values()] == [b"of rank 1"] * 3


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0]])
def test_a_start_sees_nothing_of_the_one_before(order):
    store = HashStore()
    start(store, [0, 1, 2])[0].set("address", "of a process that is gone")
    for part in start(store, order).values():
        assert not part.check(["address"])


def test_ranks_that_come_before_the_new_rank_0_wait_for_it():
    """Under the number of the former start they find its confirmations, which are not for them."""
    store = HashStore()
    start(store, [0, 1])
    with pytest.raises(RuntimeError, match="rank 0 has not found all the others"):
        join_start(store, 1, 2, SOON)


def test_those_that_have_not_come_are_named():
    with pytest.raises(RuntimeError, match="of 4 ranks have not come: rank 1, rank 2 and rank 3"):
        join_start(HashStore(), 0, 4, SOON)
    with pytest.raises(RuntimeError, match="rank 0 has not come"):
        join_start(HashStore(), 1, 4, SOON)


def test_ranks_that_were_given_other_numbers_of_ranks_are_refused():
    store = HashStore()
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(join_start, store, 1, 3, LIMIT)
        with pytest.raises(UserError, match="WORLD_SIZE is 2 for rank 0 and 3 for rank 1: all processes"):
            join_start(store, 0, 2, LIMIT)
        with pytest.raises(UserError, match="WORLD_SIZE is 2 for rank 0"):
            other.result(HANG)


def test_rank_0_says_for_whom_it_waits(monkeypatch, capfd):
    monkeypatch.setattr(joining, "PATIENCE", timedelta(seconds=0.05))
    with pytest.raises(RuntimeError, match="have not come"):
        join_start(HashStore(), 0, 3, SOON)
    assert "llmkit: waiting for rank 1 and rank 2 of 3\n" in capfd.readouterr().err
