"""Messages between the nodes of one check: a JSON value a line, over TCP; none is ever executed."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from llmkit.doctor.findings import LONGEST

GREETING = b"llmkit doctor\n"
"""What a listener answers to whoever connects, so that another program on its port is not taken for it."""


class Line:
    """A connection to another node. Every method raises OSError where it has broken."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._rest = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: Any, seconds: float = 5.0) -> None:
        """Raises TimeoutError where the other side takes nothing for so long."""
        self._socket.settimeout(seconds)
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float) -> Any:
        """The next message. Raises TimeoutError after `seconds`, ConnectionError for what is none."""
        end = time.monotonic() + seconds
        while b"\n" not in self._rest:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            part = self._socket.recv(2**16)
            if not part:
                raise ConnectionError("its process has ended")
            self._rest += part
            if len(self._rest) > LONGEST:
                raise ConnectionError("it sends too much")
            if time.monotonic() > end:
                raise TimeoutError
        text, _, self._rest = self._rest.partition(b"\n")
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConnectionError("it sends what is no message") from error

    @property
    def addresses(self) -> tuple[str, str]:
        """This side's address, and the other's."""
        own, other = self._socket.getsockname()[0], self._socket.getpeername()[0]
        return plain(own), plain(other)

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()


def plain(address: str) -> str:
    """An address without the form that IPv4 has in IPv6."""
    return address.removeprefix("::ffff:")
