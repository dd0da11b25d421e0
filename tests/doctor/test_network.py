"""Interfaces, the route, the host's name, InfiniBand: as Linux shows them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from llmkit.doctor import network
from llmkit.doctor.network import infiniband_finding, name_finding, network_findings, route_finding
from llmkit.parallel.network import ANYWHERE


def test_a_machine_tells_its_interfaces() -> None:
    found = {each.name: each for each in network_findings("", {"MASTER_ADDR": "127.0.0.1"})}
    assert "127.0.0.1" in found["interfaces"].value
    assert found["route"].value.startswith("to 127.0.0.1 by lo") and found["route"].state == "ok"
    found = {each.name: each for each in network_findings("localhost", {"MASTER_ADDR": "127.0.0.1"})}
    assert found["route"].value.startswith("to localhost by lo")


def test_no_route_matters_where_there_is_somebody_to_reach() -> None:
    assert route_finding(ANYWHERE, None, {}).state == "ok"
    assert route_finding("n1", None, {}).state == "fail"


def test_a_public_address_is_remarked_on() -> None:
    assert route_finding("n1", "10.0.0.3", {}).state == "ok"
    public = route_finding("n1", "8.8.8.8", {"GLOO_SOCKET_IFNAME": "eth7"})
    assert public.state == "warn" and "without authentication" in public.advice
    assert "chosen for training: eth7" in public.value


def test_what_the_hosts_name_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "other machines cannot reach" in name_finding("localhost").value

    def unknown(*arguments: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(network.socket, "getaddrinfo", unknown)
    assert name_finding("n1").state == "warn"


def test_a_port_that_is_down_is_named(tmp_path: Path) -> None:
    assert infiniband_finding(tmp_path) is None
    for device, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    found = infiniband_finding(tmp_path)
    assert found is not None and found.state == "warn"
    assert found.value == "1 of 2 ports are up; down: mlx5_1:1 400 Gb/sec (4X NDR)"
