"""Columns, table and events of where tokens were sent."""

from __future__ import annotations

import json
import math

import pytest
import torch

from llmkit.loop.routing_log import RoutingLog
from llmkit.model.routing import DROPPED, LOADS, TOKENS


def log(limited: bool = True) -> RoutingLog:
    return RoutingLog(
        ["blocks.1", "blocks.2"], 4, 1, torch.device("cpu"), dead=0.1, collapsed=0.2, limited=limited
    )


def sums(first: list[float], second: list[float], dropped: float = 0.0) -> torch.Tensor:
    """As of `routing_sums`: with 10 targets, balance 20, z 5, and entropy 3."""
    rows = [[10.0, 20.0, 5.0, sum(loads), 3.0, dropped, *loads] for loads in (first, second)]
    return torch.tensor(rows, dtype=torch.float64)


def failures(one: RoutingLog, *loads: list[float]) -> list[tuple[str, str]]:
    return [(each.event, each.where) for each in one.failures(sums(*loads).tolist())]


def test_columns_are_of_all_steps_since_the_last_row() -> None:
    one = log()
    one.add(sums([1, 1, 1, 1], [4, 0, 0, 0], dropped=1.0))
    one.add(sums([3, 1, 1, 1], [0, 2, 2, 2]))
    taken = one.take()
    assert taken is not None and one.take() is None
    found = one.columns(one.rows(taken.flatten().tolist()))
    assert found["router_entropy"] == pytest.approx(6.0 / 10)
    assert found["expert_load_max"] == 4 / 2.5 and found["expert_load_min"] == 2 / 2.5
    assert found["expert_dropped"] == pytest.approx(1 / 10)
    layers = one.layer_columns(taken.tolist())
    assert layers["router_balance/blocks.1"] == 2.0 and layers["router_z/blocks.2"] == 0.5
    assert layers["expert_load_max/blocks.2"] == 4 / 2.5 and "expert_dropped/blocks.1" in layers
    assert "expert_dropped" not in log(limited=False).columns(taken.tolist())
    loads = one.loads(taken.tolist())
    assert loads is not None and loads["rows"][1] == ["blocks.2", 1.6, 0.8, 0.8, 0.8]


def test_without_tokens_there_is_nothing() -> None:
    nothing = torch.zeros(2, LOADS + 4).tolist()
    assert (log().columns(nothing), log().loads(nothing), log().failures(nothing)) == ({}, None, [])
    assert TOKENS < DROPPED < LOADS


def test_a_failure_is_reported_when_it_begins() -> None:
    one = log()
    assert failures(one, [9, 10, 10, 11], [10, 10, 10, 10]) == []
    assert failures(one, [0, 10, 10, 20], [10, 10, 10, 10]) == [("dead_experts", "blocks.1: 0")]
    assert failures(one, [0, 10, 10, 20], [10, 10, 20, 0]) == [("dead_experts", "blocks.2: 3")]
    assert failures(one, [10, 10, 10, 10], [40, 0, 0, 0]) == [
        ("dead_experts", "blocks.2: 1, 2"), ("router_collapsed", "blocks.2"),
    ]  # fmt: skip
    assert failures(one, [0, 10, 10, 20], [40, 0, 0, 0]) == [("dead_experts", "blocks.1: 0")]


def test_the_spread_is_0_for_one_expert_and_1_for_all() -> None:
    spread = log()._spread
    assert spread([8, 0, 0, 0]) == 0.0 and spread([2, 2, 2, 2]) == pytest.approx(1.0)
    assert spread([4, 4, 0, 0]) == pytest.approx(1 / 3)
    every = RoutingLog(["blocks.0"], 2, 2, torch.device("cpu"), dead=0.0, collapsed=0.9, limited=False)
    assert every._spread([1, 3]) is None and every.failures([[1, 1, 1, 4, 1, 0, 0, 4]]) == []


def test_a_checkpoint_keeps_what_no_row_has_taken() -> None:
    one, other = log(), log()
    failures(one, [0, 10, 10, 20], [10, 10, 10, 10])
    one.add(sums([1, 2, 3, 4], [math.pi, 1, 1, 1]))
    state = json.loads(json.dumps(one.state()))
    other.load_state(state)
    assert failures(other, [0, 10, 10, 20], [10, 10, 10, 10]) == []
    mine, theirs = one.take(), other.take()
    assert mine is not None and theirs is not None and torch.equal(mine, theirs)
    other.load_state({})
    assert other.take() is None
    smaller = RoutingLog(["blocks.1"], 4, 1, torch.device("cpu"), dead=0.1, collapsed=0.2, limited=True)
    smaller.load_state(state)
    assert smaller.take() is None
