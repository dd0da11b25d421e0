"""Ranks in words."""

from __future__ import annotations

from llmkit.loop.ranks import hosts_of, named_ranks

HOSTS = ["n1", "n1", "n2", "n2"]


def test_ranks_are_named_with_their_hosts_and_each_host_once() -> None:
    assert named_ranks([1, 3], HOSTS, 8) == "rank 1 (n1) and rank 3 (n2)"
    assert named_ranks([0, 1, 2, 3], HOSTS, 2).startswith("rank 0 (n1), rank 1 (n1) and ")
    assert hosts_of([3, 2, 0], HOSTS) == ["n1", "n2"]
