"""Ports: those of a job, in an order of its own, and one that is free."""

from __future__ import annotations

import socket
from itertools import islice

import pytest

from llmkit.ports import PORTS, free_port, listen, ports_of


def test_every_part_of_a_job_begins_at_another_port_and_tries_them_all() -> None:
    firsts = {next(ports_of(job, part)) for job in range(100) for part in range(3)}
    assert len(firsts) == 300
    assert sorted(ports_of(999_999_999, 7)) == list(PORTS)
    first, second = islice(ports_of(123456, 0), 2)
    assert second == first + 1


def test_a_listener_hears_both_families_and_keeps_its_port() -> None:
    with listen() as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(OSError, match="in use"):
            listen(port)
        if socket.has_dualstack_ipv6():
            socket.create_connection(("::1", port)).close()
    assert free_port() > 0
