"""How long collectives take among ranks that are spread over the nodes of a fleet."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

from llmkit.estimate.hardware import Fleet

START = 6e-6
"""Seconds to start a collective (assumed: what NCCL's smallest ones take, less their hops)."""
CONTENTION = 0.12
"""Share of the time of a collective by which kernels that run beside it take longer (assumed): it holds 8 to
24 of 132 multiprocessors, and its share of the memory's bandwidth."""


@dataclass(frozen=True)
class Spread:
    """Ranks that communicate with each other, and how many of them share a node.

    Neighbouring ranks are on one node: those of a dimension that is `stride` apart are every stride-th one.
    """

    fleet: Fleet
    ranks: int
    stride: int = 1

    @property
    def in_node(self) -> int:
        """Ranks of the group that the inner link joins."""
        return max(1, min(self.ranks, self.fleet.joined // self.stride))

    @property
    def nodes(self) -> int:
        """Nodes that the group spans."""
        return -(-self.ranks // self.in_node)

    @property
    def bandwidth(self) -> float:
        """Bytes a second that pass each rank in a ring over all.

        Among nodes all groups communicate at once, and share the ports: a group has the share of its ranks in
        the node. Its rings leave a node by as many ports.
        """
        if self.nodes == 1:
            return self.fleet.inside.usable
        mine = self.fleet.node_bandwidth * self.in_node / self.fleet.devices_per_node
        return min(self.fleet.inside.usable, mine)

    @property
    def latency(self) -> float:
        """Seconds of one pass around the ring, without data: each hop waits for the one before.

        Between many nodes NCCL takes trees, whose depth grows with the logarithm (NCCL 2.4, 2.23).
        """
        inside = (self.in_node - 1) * self.fleet.inside.latency
        if self.nodes == 1:
            return inside
        hops = min(self.nodes, 2 * log2(self.nodes) + 2)
        return inside + hops * self.fleet.between.latency


def gathered(size: float, spread: Spread, messages: float = 1.0) -> float:
    """Seconds of an all-gather or a reduce-scatter of `size` bytes in all, sent as so many messages.

    (n - 1) / n of the bytes pass each rank of a ring (Thakur et al. 2005, Optimization of Collective
    Communication Operations in MPICH; NCCL's bus bandwidth is defined by it).
    """
    if spread.ranks <= 1 or size <= 0:
        return 0.0
    transfer = (spread.ranks - 1) / spread.ranks * size / spread.bandwidth
    return transfer + messages * (START + spread.latency)


def summed(size: float, spread: Spread, messages: float = 1.0) -> float:
    """Seconds of an all-reduce of `size` bytes: a reduce-scatter, then an all-gather."""
    return 2.0 * gathered(size, spread, messages)


def exchanged(size: float, spread: Spread) -> float:
    """Seconds of an all-to-all in which each rank sends `size` bytes, an equal part of them to each.

    What stays in the node and what leaves it go at once; a rank has its share of the node's ports.
    """
    if spread.ranks <= 1 or size <= 0:
        return 0.0
    fleet, near = spread.fleet, spread.in_node
    inside = size * (near - 1) / spread.ranks / fleet.inside.usable
    if spread.nodes == 1:
        return inside + START + fleet.inside.latency
    outside = size * (spread.ranks - near) / spread.ranks * fleet.devices_per_node / fleet.node_bandwidth
    return max(inside, outside) + START + fleet.between.latency


def passed(size: float, spread: Spread) -> float:
    """Seconds in which each rank sends `size` bytes to the next one of a ring; all wait for the slowest."""
    if spread.ranks <= 1 or size <= 0:
        return 0.0
    link = spread.fleet.inside if spread.nodes == 1 else spread.fleet.between
    return size / spread.bandwidth + START + link.latency


def sent(size: float, fleet: Fleet, between: bool) -> float:
    """Seconds of a message of one rank to one other; between: nodes."""
    link = fleet.between if between else fleet.inside
    share = fleet.node_bandwidth / fleet.devices_per_node if between else link.usable
    return size / share + link.latency + START
