"""How the nodes of a step meet: they connect to the first one, which asks, and they answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from llmkit.doctor.messages import Line
from llmkit.doctor.participant import Participant
from llmkit.doctor.step import Step
from llmkit.errors import RunFault
from llmkit.ports import listen

COME_SECONDS = 30.0
"""For all nodes to come to the first one, from a file system of which all import at once."""
ANSWER_SECONDS = 20.0
Answer = TypeVar("Answer")


def follow(step: Step, participant: Participant) -> None:
    """Answers what the first node asks, until it has no more questions. Raises RunFault where it is gone."""
    first = step.nodes[0]
    line = _find(step, participant, time.monotonic() + COME_SECONDS)
    if line is None:
        raise RunFault(
            f"doctor: {participant.node} cannot reach {first} on ports {step.ports[0]} to {step.ports[-1]} "
            f"within {COME_SECONDS:g} s: check the network and the firewall between them, and the name"
        )
    try:
        participant.serve(line)
    except OSError as error:
        raise RunFault(f"doctor: {first} has gone: {error}") from error
    finally:
        line.close()


def _find(step: Step, participant: Participant, end: float) -> Line | None:
    """A connection to the first node, which may not listen yet."""
    hello = ["hello", step.name, participant.node, participant.port]
    while time.monotonic() < end:
        for port in step.ports:
            with suppress(OSError):
                line = Line(socket.create_connection((step.nodes[0], port), timeout=2.0))
                line.send(hello)
                if line.receive(5.0) == ["welcome", step.name]:
                    return line
                line.close()
        time.sleep(0.2)
    return None


class Lead:
    """The first node's side. silent: nodes that have not come, or answer no more, and why."""

    def __init__(self, step: Step, participant: Participant) -> None:
        self.silent: dict[str, str] = {}
        self._step, self._own = step, participant
        self._lines: dict[str, Line] = {}
        self._ports = {participant.node: participant.port}

    def gather(self, seconds: float = COME_SECONDS) -> None:
        """Waits until all nodes have come, or the time is over. Raises RunFault where no port is free."""
        wanted = set(self._step.nodes) - {self._own.node}
        end = time.monotonic() + seconds
        with self._listen() as listener:
            while wanted and (left := end - time.monotonic()) > 0:
                listener.settimeout(left)
                with suppress(OSError):
                    connection, _ = listener.accept()
                    line = Line(connection)
                    match line.receive(2.0):
                        case ["hello", self._step.name, str(node), int(port)] if node in wanted:
                            line.send(["welcome", self._step.name])
                            self._lines[node], self._ports[node] = line, port
                            wanted.remove(node)
                        case _:
                            line.close()
        for node in wanted:
            self.silent[node] = f"it has not come within {seconds:g} s"

    def _listen(self) -> socket.socket:
        for port in self._step.ports:
            with suppress(OSError):
                return listen(port)
        raise RunFault(f"doctor: all of the ports {self._step.ports[0]} to {self._step.ports[-1]} are taken")

    def ask(
        self, question: str, contents: Mapping[str, Any], seconds: float, read: Callable[[Any], Answer]
    ) -> dict[str, Answer]:
        """Asks all nodes that `contents` names at once, this one included; the answers that came in time.

        read: makes of an answer what is wanted. A node from which none came, or none that can be read, as of
        another version of llmkit, is asked no more.
        """
        end = time.monotonic() + seconds
        asked = [node for node in contents if node in self._lines]
        for node in asked:
            with self._losing(node, question):
                self._lines[node].send([question, contents[node]])
        answers = {}
        if self._own.node in contents:
            answers[self._own.node] = read(self._own.answer(question, contents[self._own.node]))
        for node in asked:
            if node in self._lines:
                with self._losing(node, question):
                    answers[node] = read(self._lines[node].receive(max(0.5, end - time.monotonic())))
        return answers

    def offset(self, node: str, rounds: int = 5) -> tuple[float, float] | None:
        """Seconds that a node's clock is ahead of this one's, and how uncertain that is; None = no answer.

        Half of the time that question and answer take is taken for the way back; of several rounds the
        quickest counts.
        """
        found = []
        for _ in range(rounds if node in self._lines else 0):
            with self._losing(node, "time"):
                before, begin = time.time(), time.monotonic()
                self._lines[node].send(["time", None])
                there = float(self._lines[node].receive(ANSWER_SECONDS))
                half = (time.monotonic() - begin) / 2
                found.append((half, there - before - half))
        return (min(found)[1], min(found)[0]) if found else None

    def addresses_for(self, node: str) -> dict[str, tuple[str, int]]:
        """Where a node should reach all others that are still there."""
        found = {other: (line.addresses[1], self._ports[other]) for other, line in self._lines.items()}
        if node != self._own.node:
            found[self._own.node] = (self._lines[node].addresses[0], self._ports[self._own.node])
        return {other: place for other, place in found.items() if other != node}

    @property
    def own_address(self) -> str:
        """This node's address as another one sees it."""
        return next((line.addresses[0] for line in self._lines.values()), "127.0.0.1")

    @property
    def nodes(self) -> list[str]:
        """Those that are still there, in the step's order."""
        return [node for node in self._step.nodes if node == self._own.node or node in self._lines]

    def close(self) -> None:
        """Lets all end."""
        for line in self._lines.values():
            with suppress(OSError):
                line.send(["end", None])
            line.close()

    @contextmanager
    def _losing(self, node: str, question: str) -> Iterator[None]:
        """A node whose connection breaks, or that does not answer in time, is out."""
        try:
            yield
        except (OSError, ValueError, TypeError, KeyError) as error:
            late = isinstance(error, TimeoutError)
            self.silent[node] = f"no answer in time ({question})" if late else f"{error} ({question})"
            if (line := self._lines.pop(node, None)) is not None:
                line.close()
