"""What is wrong with the place where processes are to meet is said at once, and how to mend it."""

from __future__ import annotations

import socket
from datetime import timedelta

import pytest

from llmkit.errors import UserError
from llmkit.parallel import meeting
from llmkit.parallel.meeting import check_address, open_store, stray
from llmkit.parallel.rank_info import RankInfo
from tests.limits import HANG
from tests.ranks import free_ports

LIMIT = timedelta(seconds=HANG)
PORT = 1
"""Nobody listens on it."""
FIRST, ELSEWHERE = RankInfo(0, 4, 0, 2), RankInfo(2, 4, 0, 2)


@pytest.fixture
def names(monkeypatch):
    """Names of hosts, with what this one takes them for."""
    known = {"n1": ["10.0.0.1"], "both": ["::1", "10.0.0.1"], "six": ["fd00::1"]}
    known |= {"own": ["127.0.1.1"], "n2": ["127.0.1.1"]}

    def getaddrinfo(name, *_, **__):
        if name == "slow":
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if name not in known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in known[name]]

    monkeypatch.setattr(meeting.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(meeting.socket, "gethostname", lambda: "n2")


@pytest.mark.parametrize("name", ["n1", "both", "six", "slow"])
def test_a_name_that_may_lead_to_the_first_host_is_taken(names, name):
    check_address(ELSEWHERE, name, PORT)


def test_a_name_that_leads_back_here_is_refused_where_rank_0_is_elsewhere(names):
    check_address(FIRST, "own", PORT)
    check_address(RankInfo(1, 4, 1, 2), "own", PORT)
    check_address(ELSEWHERE, "n2", PORT)  # ranks may be dealt over the hosts in turn
    with pytest.raises(UserError, match=r"own, which on n2 means n2 itself \(127\.0\.1\.1\), and rank 0"):
        check_address(ELSEWHERE, "own", PORT)
    with socket.create_server(("127.0.1.1", 0)) as server:  # several launchers on one host
        check_address(ELSEWHERE, "own", server.getsockname()[1])


def test_a_name_that_nobody_knows_is_refused(names):
    with pytest.raises(UserError, match="MASTER_ADDR is nowhere, and n2 knows no host of this name"):
        check_address(FIRST, "nowhere", PORT)


def test_a_rank_0_that_is_not_where_all_meet_is_told(names):
    assert "this is rank 0, on n2, and MASTER_ADDR is another host" in stray(FIRST, "n1")
    assert [stray(FIRST, "own"), stray(ELSEWHERE, "n1"), stray(FIRST, "nowhere")] == [""] * 3


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_first_rank_keeps_what_all_share(monkeypatch, address):
    (port,) = free_ports(1)
    monkeypatch.setenv("MASTER_PORT", str(port))
    kept = open_store(FIRST, address, LIMIT)
    open_store(RankInfo(1, 4, 1, 2), address, LIMIT).set("key", "value")
    assert kept.get("key") == b"value"


def test_a_port_that_another_program_has_is_named(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(UserError, match=rf"port {port} of .* is used by another program: set"):
            open_store(FIRST, "127.0.0.1", LIMIT)


@pytest.mark.parametrize("port", ["", "0", "70000", "http"])
def test_what_is_no_port_is_refused(monkeypatch, port):
    monkeypatch.setenv("MASTER_PORT", port)
    with pytest.raises(UserError, match="it must be the number of a port"):
        open_store(FIRST, "127.0.0.1", LIMIT)
