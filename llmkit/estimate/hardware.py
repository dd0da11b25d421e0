"""Devices, links and fleets: the numbers of hardware that estimates are made of. Their tables: `devices`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llmkit.errors import UserError
from llmkit.monitor.peaks import published_peak

Architecture = Literal["ampere", "ada", "hopper", "blackwell", "cdna", "cpu"]
"""Generations of devices, which differ in how fast attention runs on them."""


@dataclass(frozen=True)
class Link:
    """What joins the devices of a node, or the nodes.

    bandwidth: bytes a second and direction of one port, by its data sheet. share: of it that large
    collectives reach. latency: seconds from a device to its neighbour. ports: of a node, which its devices
    share; None = one a device.
    """

    name: str
    bandwidth: float
    share: float
    latency: float
    source: str
    ports: int | None = None

    @property
    def usable(self) -> float:
        """Bytes a second and direction that collectives get through one port."""
        return self.bandwidth * self.share


@dataclass(frozen=True)
class Reached:
    """Shares of the published rates that the best kernels reach on large operands.

    products: of the matrix peak. memory: of the memory bandwidth. sustained: of `products`, what lasts
    through a step: where the power limit does not let all multiplying units run at the highest clock, it is
    less than a short measurement finds. source: measured where, or assumed.
    """

    products: float = 0.81
    memory: float = 0.90
    sustained: float = 0.86
    source: str = "assumed: what one H100 SXM measured, 798 of 989 TFLOP/s and 3.0 of 3.35 TB/s"


@dataclass(frozen=True)
class Device:
    """One GPU, or one process of a CPU.

    name: on the command line. label: the name that PyTorch gives it. flops: dense peak of matrix products by
    number type, FLOP/s. memory: bytes that the driver lists. bandwidth: of its memory, bytes a second. watts:
    its power limit. units: multiprocessors, over which the tiles of a product are dealt. inside, between: the
    links of the usual node and cluster. per_node: devices of the usual node. joined: devices that `inside`
    joins where these are more than a node's.
    """

    name: str
    label: str
    flops: Mapping[str, float]
    memory: float
    bandwidth: float
    watts: float
    units: int
    inside: str
    between: str
    source: str
    architecture: Architecture
    per_node: int = 8
    joined: int = 1
    reached: Reached = field(default_factory=Reached)

    def peak(self, number_type: str) -> float:
        """FLOP/s of products of this type. Raises UserError where the device has no units for it."""
        if number_type not in self.flops:
            has = ", ".join(self.flops)
            raise UserError(f"the device {self.name} has no matrix units for {number_type}; it has {has}")
        return self.flops[number_type]


@dataclass(frozen=True)
class Fleet:
    """Nodes of equal devices. Raises UserError for numbers that no cluster can have."""

    device: Device
    devices_per_node: int
    nodes: int
    inside: Link
    between: Link

    def __post_init__(self) -> None:
        for what, count in (("devices per node", self.devices_per_node), ("nodes", self.nodes)):
            if count < 1:
                raise UserError(f"a fleet needs at least 1 of its {what}; given are {count}")

    @property
    def size(self) -> int:
        """Devices in all."""
        return self.devices_per_node * self.nodes

    @property
    def joined(self) -> int:
        """Devices that the inner link joins."""
        return max(self.devices_per_node, self.device.joined)

    @property
    def node_bandwidth(self) -> float:
        """Bytes a second and direction that collectives get from one node to the others."""
        return self.between.usable * (self.between.ports or self.devices_per_node)


def gpu_flops(label: str, fp32: float, fp8: float = 0.0) -> dict[str, float]:
    """Dense peaks by number type: bf16 as utilization is measured against, FLOP/s.

    fp32: TFLOP/s of fp32 products without TF32, which training in fp32 does not use. fp8: multiple of the
    bf16 peak, 0 = no units for it.
    """
    bf16 = published_peak(label)
    assert bf16 is not None, f"monitor/peaks.py has no line for {label}"
    return {"bf16": bf16, "fp32": fp32 * 1e12} | ({"fp8": fp8 * bf16} if fp8 else {})
