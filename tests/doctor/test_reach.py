"""Who reaches whom, by real connections, and which nodes to leave out for the others to reach each other."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing

import pytest

from llmkit.doctor.reach import Greeter, to_leave_out, unreachable
from llmkit.ports import listen


@pytest.fixture
def greeter() -> Iterator[Greeter]:
    with closing(Greeter()) as found:
        yield found


def test_only_what_greets_is_reached(greeter: Greeter) -> None:
    with listen() as silent, listen() as closed:
        gone = closed.getsockname()[1]
        closed.close()
        others = {
            "well": ("127.0.0.1", greeter.port), "silent": ("127.0.0.1", silent.getsockname()[1]),
            "gone": ("127.0.0.1", gone), "also well": ("localhost", greeter.port),
        }  # fmt: skip
        assert unreachable(others, seconds=0.3) == ["silent", "gone"]


def pairs(*names: str) -> set[frozenset[str]]:
    return {frozenset(name) for name in names}


def test_the_node_in_most_broken_pairs_is_left_out() -> None:
    assert to_leave_out(set(), ["a", "b"]) == []
    assert to_leave_out(pairs("ab", "cb", "bd"), list("abcd")) == ["b"]
    assert to_leave_out(pairs("bc"), list("abcd")) == ["c"]  # either would do: the later one
    assert to_leave_out(pairs("ab", "cd"), list("abcd")) == ["d", "b"]


def test_those_that_are_left_reach_each_other() -> None:
    draw = random.Random(1)
    for _ in range(100):
        order = list("abcdef")
        broken = {frozenset(draw.sample(order, 2)) for _ in range(draw.randint(0, 8))}
        left = set(order) - set(to_leave_out(broken, order))
        assert not any(pair <= left for pair in broken)
