"""Where the processes of a launch meet: the store at MASTER_ADDR and MASTER_PORT, and what is wrong there."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta

import psutil
from torch._C._distributed_c10d import Store, TCPStore

from llmkit.errors import UserError
from llmkit.parallel.rank_info import RankInfo


def open_store(info: RankInfo, address: str, timeout: timedelta) -> Store:
    """The store in which the processes find each other: that of torchrun's agent, else rank 0 keeps it.

    Raises UserError for an address or a port that cannot be the right one, RuntimeError where nobody answers.
    """
    port = os.environ["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UserError(f"MASTER_PORT is {port!r}; it must be the number of a port, 1 to 65535")
    check_address(info, address, int(port))
    keeps = info.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return TCPStore(
            address, int(port), is_master=keeps, timeout=timeout, wait_for_workers=False, multi_tenant=keeps
        )
    except RuntimeError as error:
        if keeps and "EADDRINUSE" in str(error):
            raise UserError(
                f"port {port} of {socket.gethostname()}, where the processes of this run meet, is used by "
                "another program: set MASTER_PORT to another one, the same for all processes (torchrun "
                "--master-port, accelerate launch --main_process_port)"
            ) from error
        raise


def check_address(info: RankInfo, address: str, port: int) -> None:
    """Raises UserError where the name of the first host cannot lead to it from here.

    Several launchers may be on one host, as in a trial: then somebody answers there.
    """
    host = socket.gethostname()
    try:
        found = _addresses(address)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:  # may pass
            return
        raise UserError(
            f"MASTER_ADDR is {address}, and {host} knows no host of this name: give the name or the address "
            "of rank 0's host as all hosts know it"
        ) from error
    # Rank 0 is on this host where the ranks of a host follow each other, or by its name.
    other_host = info.rank != info.local_rank and address != host
    if other_host and all(each.is_loopback for each in found) and not _answers(found[0], port):
        raise UserError(
            f"MASTER_ADDR is {address}, which on {host} means {host} itself ({found[0]}), and rank 0 runs on "
            "another host: give its address in the network, or mend /etc/hosts"
        )


def stray(info: RankInfo, address: str) -> str:
    """For the message of a rank 0 that has waited in vain: that its host is not the one at `address`."""
    try:
        found = set(_addresses(address))
    except socket.gaierror:
        return ""
    own = {
        ipaddress.ip_address(each.address.partition("%")[0])
        for addresses in psutil.net_if_addrs().values()
        for each in addresses
        if each.family in (socket.AF_INET, socket.AF_INET6)
    }
    if info.rank > 0 or found & own or any(each.is_loopback for each in found):
        return ""
    return (
        f"; this is rank 0, on {socket.gethostname()}, and MASTER_ADDR is another host: if every host has "
        'been given rank 0, write \\$SLURM_NODEID in `srun bash -c "..."`'
    )


def _answers(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> bool:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        return probe.connect_ex((str(address), port)) == 0


def _addresses(name: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    places = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(str(place[4][0]).partition("%")[0]) for place in places]
