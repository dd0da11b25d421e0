"""Which network interface gloo is told to use: that of the route to the first process."""

from __future__ import annotations

import os
import socket
from collections import namedtuple

import pytest

from llmkit.parallel import network
from llmkit.parallel.network import choose_gloo_interface, interface_of, source_address

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
