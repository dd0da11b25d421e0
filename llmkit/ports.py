"""Ports of this host: which a job takes, and how to listen on one."""

from __future__ import annotations

import socket
from collections.abc import Iterator

PORTS = range(20000, 32768)
"""From which a job's ports are taken: Linux gives those above to outgoing connections."""


def ports_of(job: int, part: int) -> Iterator[int]:
    """All of PORTS, in the order in which a part of a SLURM job (a start, a step) should try them.

    Jobs that share a node begin at different ones, and so do the parts of a job.
    """
    first = job * 31 + part * 7
    return (PORTS[(first + attempt) % len(PORTS)] for attempt in range(len(PORTS)))


def listen(port: int = 0) -> socket.socket:
    """A listener for all addresses of this host. port: 0 = any that is free.

    Raises OSError where the port is taken.
    """
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=512)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with listen() as listener:
        return int(listener.getsockname()[1])
