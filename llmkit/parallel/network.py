"""The network interface through which the processes of a run reach each other."""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path

import psutil

ANYWHERE = "192.0.2.1"
"""An address outside (RFC 5737, nothing is sent to it): the route to it is the default one."""


NCCL_FILES = ("/etc/nccl.conf", "~/.nccl.conf")
VERBS = Path("/sys/class/infiniband")
"""Has an entry for each device that NCCL can use without sockets."""


def choose_gloo_interface(address: str, *, one_host: bool) -> str:
    """Sets GLOO_SOCKET_IFNAME to the interface of the route to `address`, unless it is set; returns it.

    Without it gloo listens where the host's own name points to, which on many machines is the loopback
    interface, and processes on other hosts wait for it in vain. one_host: whether all are on this one, so
    that the loopback interface will do. "" where no interface is found: the choice is then gloo's.
    """
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "")
    # On the first host, `address` itself is often a name for the loopback interface.
    for target in (address, ANYWHERE):
        if chosen:
            break
        source = source_address(target)
        if source is not None and (one_host or not ipaddress.ip_address(source).is_loopback):
            chosen = interface_of(source) or ""
    if chosen:
        os.environ["GLOO_SOCKET_IFNAME"] = chosen
    return chosen


def choose_nccl_interface(interface: str) -> str:
    """Sets NCCL_SOCKET_IFNAME where NCCL might take an interface that leads nowhere; returns what it sets.

    NCCL takes InfiniBand first, else all interfaces but loopback and Docker, and meets by the first one:
    a bridge of virtual machines, say. Its choice stands where there is InfiniBand (verbs, or an interface
    ib...), where the user or the administrator has made it (the variable, nccl.conf), and where there is
    one interface only. interface: that of the route to the other hosts; "" where that is not known.
    """
    names = [name for name, each in psutil.net_if_stats().items() if each.isup]
    others = [name for name in names if not name.startswith(("lo", "docker"))]
    decided = any(os.environ.get(name) for name in ("NCCL_SOCKET_IFNAME", "NCCL_CONF_FILE"))
    decided = decided or any(os.path.exists(os.path.expanduser(file)) for file in NCCL_FILES)
    infiniband = any(name.startswith("ib") for name in names) or (VERBS.is_dir() and any(VERBS.iterdir()))
    if not interface or decided or infiniband or len(others) < 2:
        return ""
    os.environ["NCCL_SOCKET_IFNAME"] = f"={interface}"  # this one, and not all whose names begin so
    return interface


def address_of(interface: str) -> str:
    """The first address of an interface by which other hosts can reach it; "" where it has none."""
    for each in psutil.net_if_addrs().get(interface, []):
        if each.family in (socket.AF_INET, socket.AF_INET6):
            return str(each.address).partition("%")[0]
    return ""


def source_address(target: str) -> str | None:
    """The address of this host from which packets to `target` go; None where there is no route to it."""
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(place)  # of a datagram socket: asks the routing table, sends nothing
                return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        pass
    return None


def interface_of(address: str) -> str | None:
    """The interface that has this address."""
    wanted = ipaddress.ip_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                found = ipaddress.ip_address(each.address.partition("%")[0])
                # A route to 127.0.1.1, too, goes by the interface that has 127.0.0.1.
                if found == wanted or (found.is_loopback and wanted.is_loopback):
                    return name
    return None


def address_of_gloo() -> str:
    """This host's address on the interface that gloo uses, by which other hosts reach it.

    Where that is not known, of the default route; raises OSError where there is none either.
    """
    chosen = os.environ.get("GLOO_SOCKET_IFNAME", "").partition(",")[0]
    address = address_of(chosen) or source_address(ANYWHERE)
    if address is None:
        raise OSError(f"no address on the interface {chosen!r}, and no route to the outside")
    return address
