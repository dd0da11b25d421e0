"""The connections of the hub with the watching processes of the other ranks."""

from __future__ import annotations

import selectors
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from llmkit.watchdog.lines import Lines, Message

MOST_STRANGERS = 64
"""Connections that have not shown the token yet, at most: the others are refused."""


class Peers:
    """Who has joined, by rank.

    server: listens already; None where there is one rank alone. token: shown by whoever belongs to the run.
    """

    def __init__(
        self, server: socket.socket | None, token: str, world: int, selector: selectors.BaseSelector
    ) -> None:
        self._server, self._token, self._world, self._selector = server, token.encode(), world, selector
        self._joined: dict[int, Lines] = {}
        self._ranks: dict[int, int] = {}  # by the descriptor of their connection
        self._strangers: list[Lines] = []
        if server is not None:
            server.setblocking(False)
            selector.register(server, selectors.EVENT_READ)

    def send(self, **message: Any) -> None:
        """The same message for all."""
        for line in self._joined.values():
            line.send(**message)

    def tell(self, rank: int, message: Message) -> None:
        """A message for one that has joined."""
        self._joined[rank].send(**message)

    def hear(self, ready: Iterable[int]) -> Iterator[tuple[int, Message | None]]:
        """What has arrived, with the rank that it is from. The first message of a rank is its `hello`; None =
        its connection has ended.

        ready: descriptors that something has arrived at; of hundreds of ranks the others are not looked at.
        """
        yield from self._welcome()
        for rank in [self._ranks[descriptor] for descriptor in ready if descriptor in self._ranks]:
            line = self._joined[rank]
            for message in line.receive():
                yield rank, message
            if line.closed:
                del self._ranks[line.socket.fileno()], self._joined[rank]
                self._forget(line)
                yield rank, None

    def _welcome(self) -> Iterator[tuple[int, Message]]:
        if self._server is None:
            return
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                if len(self._strangers) >= MOST_STRANGERS:
                    connection.close()
                    continue
                self._strangers.append(Lines(connection))
                self._selector.register(connection, selectors.EVENT_READ)
        for line in list(self._strangers):
            messages = line.receive()
            if not messages and not line.closed:
                continue
            self._strangers.remove(line)
            if messages and self._belongs(messages[0]):
                rank = int(messages[0]["rank"])
                self._joined[rank], self._ranks[line.socket.fileno()] = line, rank
                for message in messages:
                    yield rank, message
            else:
                self._forget(line)

    def _belongs(self, hello: Message) -> bool:
        rank, token = hello.get("rank"), hello.get("token")
        if type(rank) is not int or not isinstance(token, str) or not isinstance(hello.get("pid"), int):
            return False
        from hmac import compare_digest  # only here: it takes as much memory as all the rest

        known = 0 < rank < self._world and rank not in self._joined
        return known and compare_digest(token.encode(), self._token)

    def _forget(self, line: Lines) -> None:
        self._selector.unregister(line.socket)
        line.close()
