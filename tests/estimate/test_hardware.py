"""Devices, links and fleets as types."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.estimate.devices import Hardware
from llmkit.estimate.hardware import Fleet, Link


def test_a_fleet_counts_its_devices_and_ports() -> None:
    hardware = Hardware()
    fleet = hardware.fleet("h100", nodes=16)
    assert fleet.size == 128
    assert fleet.node_bandwidth == pytest.approx(8 * 50e9 * 0.92)
    shared = hardware.fleet("l40s", 4, 2)
    assert shared.node_bandwidth == pytest.approx(12.5e9 * 0.70)  # one port for four devices
    assert hardware.fleet("gb200", nodes=2).joined == 72
    assert hardware.fleet("h100", 16).joined == 16


@pytest.mark.parametrize(("per_node", "nodes", "what"), [(0, 1, "devices per node"), (8, 0, "nodes")])
def test_a_fleet_of_nothing_is_refused(per_node: int, nodes: int, what: str) -> None:
    with pytest.raises(UserError, match=f"at least 1 of its {what}; given are 0"):
        Hardware().fleet("h100", per_node, nodes)


def test_a_link_that_is_shared_limits_the_node() -> None:
    device = Hardware().device("h100")
    link = Link("two ports", 10e9, 0.5, 1e-5, "test", ports=2)
    assert Fleet(device, 8, 2, link, link).node_bandwidth == pytest.approx(10e9)


def test_a_device_without_units_for_a_type_says_so() -> None:
    with pytest.raises(UserError, match="a100 has no matrix units for fp8; it has bf16, fp32"):
        Hardware().device("a100").peak("fp8")
