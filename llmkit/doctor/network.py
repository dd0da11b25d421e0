"""Network interfaces, the route to the other nodes, and what the host's name stands for."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from llmkit.doctor.findings import Finding
from llmkit.parallel.network import ANYWHERE, interface_of, source_address

INFINIBAND = Path("/sys/class/infiniband")


def network_findings(first: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Sends nothing. first: the node to reach, "" = that of MASTER_ADDR."""
    yield interfaces_finding()
    target = first or environment.get("MASTER_ADDR") or ANYWHERE
    yield route_finding(target, source_address(target), environment)
    yield name_finding(socket.gethostname())
    if (finding := infiniband_finding()) is not None:
        yield finding


def interfaces_finding() -> Finding:
    """Those that are up, with their addresses and speeds."""
    states = psutil.net_if_stats()
    shown = []
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        found = [each.address.partition("%")[0] for each in addresses if each.family == socket.AF_INET]
        if name in states and states[name].isup and found:
            speed = f" {states[name].speed:,} Mbit/s" if states[name].speed else ""
            shown.append(f"{name} {' '.join(found)}{speed} mtu {states[name].mtu}")
    return Finding("interfaces", "ok", "; ".join(shown) or "none is up")


def route_finding(target: str, source: str | None, environment: Mapping[str, str]) -> Finding:
    """How this node reaches `target`; source: its own address on that route, None = there is none."""
    where = "other machines" if target == ANYWHERE else target
    if source is None:
        if target == ANYWHERE:
            return Finding("route", "ok", "none to other machines: processes of this machine alone")
        return Finding("route", "fail", f"none to {where}", "check MASTER_ADDR, and the network of this node")
    address = ipaddress.ip_address(source)
    value = f"to {where} by {interface_of(source) or 'an unknown interface'}, as {source}"
    chosen = environment.get("GLOO_SOCKET_IFNAME") or environment.get("NCCL_SOCKET_IFNAME")
    value += f" (chosen for training: {chosen})" if chosen else ""
    if address.is_global:
        advice = (
            "processes of a run find each other by a port without authentication: keep it from others by a "
            "firewall, or set MASTER_ADDR to an address of a private network"
        )
        return Finding("route", "warn", f"{value}, which is a public address", advice)
    return Finding("route", "ok", value)


def name_finding(name: str) -> Finding:
    """What this host's own name stands for."""
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError as error:
        advice = "add it to /etc/hosts or DNS; some libraries look it up to find their interface"
        return Finding("host name", "warn", f"{name} is not known: {error.strerror}", advice)
    value = f"{name} is {address}"
    if ipaddress.ip_address(str(address).partition("%")[0]).is_loopback:
        value += ", which other machines cannot reach (llmkit takes the interface of the route instead)"
    return Finding("host name", "ok", value)


def infiniband_finding(folder: Path = INFINIBAND) -> Finding | None:
    """The ports of InfiniBand and RoCE; None where there are no such devices."""
    ports = sorted(folder.glob("*/ports/*"))
    if not ports:
        return None
    up: list[str] = []
    down: list[str] = []
    for port in ports:
        try:
            state, rate = ((port / file).read_text().strip() for file in ("state", "rate"))
        except OSError:
            continue
        (up if "ACTIVE" in state else down).append(f"{port.parts[-3]}:{port.name} {rate}")
    value = f"{len(up)} of {len(up) + len(down)} ports are up"
    if down:
        advice = "check the cables and the subnet manager; NCCL uses what is up, which is slower"
        return Finding("infiniband", "warn", f"{value}; down: {', '.join(down)}", advice, "should")
    return Finding("infiniband", "ok", f"{value}: {', '.join(up)}", compared="should")
