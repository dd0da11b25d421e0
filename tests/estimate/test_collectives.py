"""Collectives among the ranks of a fleet."""

from __future__ import annotations

import pytest

from llmkit.estimate.collectives import START, Spread, exchanged, gathered, passed, sent, summed
from llmkit.estimate.devices import Hardware

HARDWARE = Hardware()
NODE, CLUSTER = HARDWARE.fleet("h100"), HARDWARE.fleet("h100", nodes=16)


def test_in_a_node_the_inner_link_counts() -> None:
    spread = Spread(NODE, 8)
    assert (spread.in_node, spread.nodes) == (8, 1)
    expected = 7 / 8 * 1e9 / (450e9 * 0.82) + START + 7 * 1.5e-6
    assert gathered(1e9, spread) == pytest.approx(expected)
    assert summed(1e9, spread) == pytest.approx(2 * expected)
    assert gathered(1e9, Spread(NODE, 1)) == 0.0


def test_among_nodes_a_group_has_the_ports_of_its_ranks() -> None:
    whole, every_eighth = Spread(CLUSTER, 128), Spread(CLUSTER, 16, stride=8)
    assert (whole.in_node, whole.nodes) == (8, 16)
    assert (every_eighth.in_node, every_eighth.nodes) == (1, 16)
    assert whole.bandwidth == pytest.approx(8 * 46e9)
    assert every_eighth.bandwidth == pytest.approx(46e9)
    half = Spread(CLUSTER, 32, stride=4)  # two of its ranks in each node
    assert half.bandwidth == pytest.approx(2 * 46e9)


def test_ranks_of_a_node_share_its_one_port() -> None:
    ethernet = HARDWARE.fleet("l40s", nodes=4)
    assert Spread(ethernet, 32).bandwidth == pytest.approx(12.5e9 * 0.70)
    assert Spread(ethernet, 4, stride=8).bandwidth == pytest.approx(12.5e9 * 0.70 / 8)


def test_a_rack_that_one_link_joins_is_one_node() -> None:
    rack = HARDWARE.fleet("gb200", nodes=18)
    assert Spread(rack, 72).nodes == 1
    more = Spread(HARDWARE.fleet("gb200", nodes=36), 144)
    assert (more.in_node, more.nodes) == (72, 2)
    assert more.bandwidth == pytest.approx(min(900e9 * 0.80, 72 * 46e9))


def test_small_messages_pay_for_hops_and_many_messages_for_starts() -> None:
    small = gathered(1e4, Spread(CLUSTER, 128))
    assert small > 10 * 1e4 / CLUSTER.node_bandwidth
    assert small < gathered(1e4, Spread(HARDWARE.fleet("h100", nodes=128), 1024))
    assert gathered(1e9, Spread(NODE, 8), 40) - gathered(1e9, Spread(NODE, 8)) == pytest.approx(
        39 * (START + 7 * 1.5e-6)
    )


def test_a_message_between_nodes_takes_one_port() -> None:
    assert sent(1e9, CLUSTER, between=True) == pytest.approx(1e9 / 46e9, rel=0.01)
    assert sent(1e9, CLUSTER, between=False) < sent(1e9, CLUSTER, between=True)


def test_an_all_to_all_sends_an_equal_part_to_each() -> None:
    """Of 8 ranks in a node 7/8 leave a rank; of 16 in two nodes half leaves the node, by a rank's port."""
    assert exchanged(1e9, Spread(NODE, 8)) == pytest.approx(7 / 8 * 1e9 / (450e9 * 0.82) + START + 1.5e-6)
    over = exchanged(1e9, Spread(CLUSTER, 16))
    assert over == pytest.approx(0.5e9 / 46e9 + START + CLUSTER.between.latency)
    assert exchanged(1e9, Spread(NODE, 1)) == 0.0


def test_a_message_to_the_next_rank_takes_the_slowest_link_of_the_ring() -> None:
    assert passed(1e9, Spread(NODE, 8)) == pytest.approx(1e9 / (450e9 * 0.82) + START + 1.5e-6)
    one_a_node = Spread(CLUSTER, 16, stride=8)
    assert passed(1e9, one_a_node) == pytest.approx(1e9 / 46e9 + START + CLUSTER.between.latency)
    assert passed(1e9, Spread(CLUSTER, 16)) < 1.3 * passed(1e9, Spread(NODE, 8))  # eight ports for one ring
