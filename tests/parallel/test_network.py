"""Which network interface gloo is told to use: that of the route to the first process."""

from __future__ import annotations

import os
import socket
from collections import namedtuple

import pytest

from llmkit.parallel import network
from llmkit.parallel.network import (
    address_of,
    choose_gloo_interface,
    choose_nccl_interface,
    interface_of,
    source_address,
)

Address = namedtuple("Address", ["family", "address"])
INTERFACES = {
    "lo": [Address(socket.AF_INET, "127.0.0.1"), Address(socket.AF_INET6, "::1")],
    "eth0": [Address(socket.AF_INET, "10.0.0.5"), Address(socket.AF_PACKET, "02:42:ac:11:00:02")],
    "ib0": [Address(socket.AF_INET, "10.1.0.5"), Address(socket.AF_INET6, "fe80::1%ib0")],
}
ROUTES = {
    "n1": "10.1.0.5",
    "own-name": "127.0.0.1",  # /etc/hosts has 127.0.1.1 for it, and packets leave by 127.0.0.1
    network.ANYWHERE: "10.0.0.5",
}


@pytest.fixture(autouse=True)
def host(monkeypatch):
    """Two networks, and nothing chosen yet."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "")  # undone afterwards
    monkeypatch.setattr(network.psutil, "net_if_addrs", lambda: INTERFACES)
    monkeypatch.setattr(network, "source_address", ROUTES.get)


@pytest.mark.parametrize(
    ("address", "one_host", "interface"),
    [
        ("n1", False, "ib0"),
        ("n1", True, "ib0"),
        ("own-name", True, "lo"),
        ("own-name", False, "eth0"),  # nobody else reaches the loopback interface: the default route
        ("nowhere", False, "eth0"),
    ],
)
def test_the_interface_of_the_route_is_chosen(address, one_host, interface):
    assert choose_gloo_interface(address, one_host=one_host) == interface
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface


def test_what_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "bond0")
    assert choose_gloo_interface("n1", one_host=False) == "bond0"
    assert os.environ["GLOO_SOCKET_IFNAME"] == "bond0"


def test_without_any_route_gloo_chooses(monkeypatch):
    monkeypatch.setattr(network, "source_address", lambda target: None)
    assert choose_gloo_interface("n1", one_host=False) == ""
    assert not os.environ["GLOO_SOCKET_IFNAME"]


def test_an_address_has_its_interface():
    assert [interface_of(a) for a in ("10.1.0.5", "fe80::1", "127.0.1.1", "::1", "10.9.9.9")] == [
        "ib0", "ib0", "lo", "lo", None,
    ]  # fmt: skip


def test_of_this_machine():
    assert source_address("127.0.0.1") == "127.0.0.1"
    assert source_address("no such name.invalid") is None


Stats = namedtuple("Stats", ["isup"])


@pytest.fixture
def nccl(monkeypatch, tmp_path):
    """A host with two networks and no InfiniBand, on which nothing is decided for NCCL."""
    for name in ("NCCL_SOCKET_IFNAME", "NCCL_CONF_FILE"):
        monkeypatch.setenv(name, "")
    up = {"lo": True, "docker0": True, "virbr0": True, "eth0": True, "ib0": False}
    stats = {name: Stats(isup) for name, isup in up.items()}
    monkeypatch.setattr(network.psutil, "net_if_stats", lambda: stats)
    monkeypatch.setattr(network, "NCCL_FILES", (str(tmp_path / "nccl.conf"),))
    monkeypatch.setattr(network, "VERBS", tmp_path / "infiniband")
    return stats


def test_nccl_is_told_the_interface_where_it_could_take_another(nccl):
    assert choose_nccl_interface("eth0") == "eth0"
    assert os.environ["NCCL_SOCKET_IFNAME"] == "=eth0"


@pytest.mark.parametrize("case", ["unknown", "chosen", "file", "named file", "one", "verbs", "ip over ib"])
def test_the_choice_is_left_to_nccl_where_it_is_made_or_needs_none(nccl, case, monkeypatch, tmp_path):
    if case == "chosen":
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", "bond0")
    elif case == "file":
        (tmp_path / "nccl.conf").touch()
    elif case == "named file":
        monkeypatch.setenv("NCCL_CONF_FILE", "/site/nccl.conf")
    elif case == "one":
        del nccl["virbr0"]
    elif case == "verbs":
        (tmp_path / "infiniband" / "mlx5_0").mkdir(parents=True)
    elif case == "ip over ib":
        nccl["ib0"] = Stats(True)
    assert choose_nccl_interface("" if case == "unknown" else "eth0") == ""
    assert os.environ["NCCL_SOCKET_IFNAME"] == ("bond0" if case == "chosen" else "")


def test_an_interface_has_its_address():
    assert [address_of(name) for name in ("eth0", "lo", "none")] == ["10.0.0.5", "127.0.0.1", ""]


def test_the_address_on_the_interface_of_gloo(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert network.address_of_gloo() == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    monkeypatch.setattr(network, "source_address", lambda target: "10.1.2.3")
    assert network.address_of_gloo() == "10.1.2.3"
    monkeypatch.setattr(network, "source_address", lambda target: None)
    with pytest.raises(OSError, match="nowhere0"):
        network.address_of_gloo()
