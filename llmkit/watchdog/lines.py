"""JSON objects, one a line, over a socket that is never waited for."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import Any

Message = dict[str, Any]
MOST = 1 << 18
"""Bytes that wait to be sent, or belong to one line, at most: more is dropped, or ends the connection."""


class Lines:
    """One end of a connection. closed: whether the other one has gone, or sent what is no message."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.socket, self.closed = connection, False
        self._out = self._in = b""

    def send(self, **message: Any) -> None:
        """Queues a message, and sends what can be sent now."""
        if len(self._out) < MOST:
            self._out += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> bool:
        """Sends what can be sent now; whether nothing is left."""
        with suppress(BlockingIOError):
            try:
                while self._out:
                    self._out = self._out[self.socket.send(self._out) :]
            except BlockingIOError:
                raise
            except OSError:
                self.closed, self._out = True, b""
        return not self._out

    def receive(self) -> list[Message]:
        """The messages that have arrived since the last call."""
        try:
            while part := self.socket.recv(65536):
                self._in += part
                if len(self._in) > MOST:
                    break
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        *lines, self._in = self._in.split(b"\n")
        found = []
        for line in lines:
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                self.closed = True
                break
            found.append(message)
        return found

    def close(self) -> None:
        """Ends the connection."""
        self.socket.close()
