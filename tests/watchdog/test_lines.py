"""Messages over a socket that is never waited for."""

from __future__ import annotations

import socket

from llmkit.watchdog.lines import MOST, Lines


def pair() -> tuple[Lines, Lines]:
    one, other = socket.socketpair()
    return Lines(one), Lines(other)


def test_messages_arrive_in_order_also_in_parts():
    one, other = pair()
    one.socket.send(b'{"a": 1}\n{"b"')
    assert other.receive() == [{"a": 1}]
    one.socket.send(b': 2}\n{"c": 3}\n')
    assert other.receive() == [{"b": 2}, {"c": 3}]
    assert not other.closed


def test_what_nobody_reads_is_not_waited_for_and_takes_no_more_than_a_limit():
    one, other = pair()
    for number in range(5000):
        one.send(text="x" * 1000, number=number)
    assert not one.flush() and len(one._out) <= MOST + 2000
    assert other.receive()[0]["number"] == 0


def test_the_end_of_the_other_side_is_seen_after_its_last_message():
    one, other = pair()
    one.send(kind="left")
    one.close()
    assert other.receive() == [{"kind": "left"}]
    assert other.closed
    other.send(kind="late")
    assert other.closed


def test_what_is_no_message_ends_the_connection():
    for content in (b"nonsense\n", b"[1]\n", b"[" * 100_000 + b"\n", b"x" * (MOST + 1)):
        one, other = pair()
        one.socket.setblocking(True)
        one.socket.sendall(content[:60_000])
        found = other.receive()
        if len(content) > 60_000:
            one.socket.sendall(b"\n")
            found += other.receive()
        assert found == [] and other.closed
