"""Which nodes can connect to which others, each pair tried."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from llmkit.doctor.messages import GREETING
from llmkit.ports import listen

SECONDS = 3.0
"""For a connection and the greeting."""
AT_ONCE = 32


class Greeter:
    """Greets whoever connects, until `close`. port: where."""

    def __init__(self) -> None:
        self._listener = listen()
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, name="greeter", daemon=True).start()

    def close(self) -> None:
        """Ends it."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError), connection:
                connection.sendall(GREETING)


def unreachable(others: Mapping[str, tuple[str, int]], seconds: float = SECONDS) -> list[str]:
    """The nodes whose greeters this one cannot reach. others: name -> address and port."""

    def fails(name: str) -> bool:
        try:
            with socket.create_connection(others[name], timeout=seconds) as connection:
                return connection.recv(len(GREETING), socket.MSG_WAITALL) != GREETING
        except OSError:
            return True

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [name for name, failed in zip(others, pool.map(fails, others)) if failed]


def to_leave_out(pairs: set[frozenset[str]], order: list[str]) -> list[str]:
    """Nodes without which all that are left reach each other: those in most of the pairs that do not.

    Of two in as many, the later one in `order` goes.
    """
    left, out = set(pairs), []
    while left:
        worst = max(order, key=lambda node: (sum(node in pair for pair in left), order.index(node)))
        out.append(worst)
        left = {pair for pair in left if worst not in pair}
    return out
