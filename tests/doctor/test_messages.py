"""Messages between nodes: whole, in order, limited, and nothing but JSON."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest

from llmkit.doctor import messages
from llmkit.doctor.messages import Line, plain
from llmkit.ports import listen


@pytest.fixture
def ends() -> Iterator[tuple[Line, socket.socket]]:
    with listen() as listener:
        port = listener.getsockname()[1]
        other = socket.create_connection(("127.0.0.1", port))
        connection, _ = listener.accept()
    with closing(Line(connection)) as line, other:
        yield line, other


def test_messages_arrive_whole_and_in_order(ends: tuple[Line, socket.socket]) -> None:
    line, other = ends
    sent = [["first", {"a": 1.5}], ["second", "x" * 200_000]]
    with closing(Line(other)) as there:
        thread = threading.Thread(target=lambda: [there.send(each) for each in sent])
        thread.start()
        assert [line.receive(60.0) for _ in sent] == sent
        thread.join()
        assert line.addresses == ("127.0.0.1", "127.0.0.1") == there.addresses


def test_silence_and_an_end_are_told_apart(ends: tuple[Line, socket.socket]) -> None:
    line, other = ends
    with pytest.raises(TimeoutError):
        line.receive(0.01)
    other.sendall(b'["half')
    other.shutdown(socket.SHUT_RDWR)
    with pytest.raises(ConnectionError, match="its process has ended"):
        line.receive(60.0)


@pytest.mark.parametrize("sent", [b"no json\n", b"[" * 100_000 + b"\n", b"x" * 2048])
def test_what_is_no_message_is_refused(
    sent: bytes, ends: tuple[Line, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "LONGEST", 200_000 if len(sent) > 2048 else 1024)
    ends[1].sendall(sent)
    with pytest.raises(ConnectionError, match="it sends"):
        ends[0].receive(60.0)


def test_an_ipv4_address_is_shown_as_one() -> None:
    assert plain("::ffff:10.0.0.3") == "10.0.0.3" and plain("fe80::1") == "fe80::1"
