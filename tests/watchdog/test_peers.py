"""Who may talk with the hub."""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any

import pytest

from llmkit.watchdog.lines import Lines
from llmkit.watchdog.peers import MOST_STRANGERS, Peers
from tests.limits import HANG

HELLO = {"kind": "hello", "token": "secret", "rank": 1, "host": "n1", "pid": 5}


@pytest.fixture
def server():
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


@pytest.fixture
def peers(server):
    return Peers(server, "secret", 2, selectors.DefaultSelector())


def joined(server: socket.socket, **message: Any) -> Lines:
    line = Lines(socket.create_connection(server.getsockname()))
    line.send(**message)
    return line


def hear(peers: Peers) -> list[Any]:
    return list(peers.hear([key.fd for key, _ in peers._selector.select(0.05)]))


def heard(peers: Peers, count: int) -> list[Any]:
    found: list[Any] = []
    last = time.monotonic() + HANG
    while len(found) < count and time.monotonic() < last:
        found += hear(peers)
    return found


def test_a_rank_joins_is_heard_and_its_end_is_seen(server, peers):
    line = joined(server, **HELLO)
    line.send(kind="report", step=3)
    line.close()
    (first, second, third) = heard(peers, 3)
    assert first == (1, HELLO) and second == (1, {"kind": "report", "step": 3}) and third == (1, None)


def test_it_hears_what_is_sent_to_all(server, peers):
    line = joined(server, **HELLO)
    heard(peers, 1)
    peers.send(kind="stacks")
    last, found = time.monotonic() + HANG, []
    while not found and time.monotonic() < last:
        found = line.receive()
    assert found == [{"kind": "stacks"}]


@pytest.mark.parametrize(
    "hello",
    [
        {**HELLO, "token": "wrong"},
        {**HELLO, "rank": 0},
        {**HELLO, "rank": 2},
        {**HELLO, "rank": True},
        {**HELLO, "token": 7},
        {**HELLO, "pid": "5"},
        {"kind": "report", "step": 3},
    ],
)
def test_strangers_are_sent_away(server, peers, hello):
    line = joined(server, **hello)
    last = time.monotonic() + HANG
    while not line.closed and time.monotonic() < last:
        assert hear(peers) == []
        line.receive()
    assert line.closed


def test_nobody_takes_the_place_of_a_rank_that_has_joined(server, peers):
    first = joined(server, **HELLO)
    heard(peers, 1)
    second = joined(server, **HELLO)
    last = time.monotonic() + HANG
    while not second.closed and time.monotonic() < last:
        assert hear(peers) == []
        second.receive()
    assert second.closed and not first.closed


def test_silent_strangers_are_not_collected(server, peers):
    silent = [socket.create_connection(server.getsockname()) for _ in range(MOST_STRANGERS + 20)]
    last = time.monotonic() + HANG
    while len(peers._strangers) < MOST_STRANGERS and time.monotonic() < last:
        assert hear(peers) == []
    assert len(peers._strangers) == MOST_STRANGERS
    for each in silent:
        each.close()
    while peers._strangers and time.monotonic() < last:
        hear(peers)
    line = joined(server, **HELLO)
    assert heard(peers, 1) == [(1, HELLO)]
    line.close()
