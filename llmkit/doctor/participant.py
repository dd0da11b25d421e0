"""What one node of a check of all nodes does when it is asked to, and its answers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmkit.doctor.collectives import Ranks
from llmkit.doctor.disk import lock_of_another
from llmkit.doctor.findings import Report
from llmkit.doctor.messages import Line
from llmkit.doctor.reach import Greeter, unreachable

PATIENCE = 60.0
"""Seconds beyond those of its own checks that a node waits for the next question: others may take longer."""


class Participant:
    """A node's part. check: what its report is made by, in about `seconds`."""

    def __init__(self, node: str, check: Callable[[], Report], seconds: float) -> None:
        self.node = node
        self._patience = seconds + PATIENCE
        self._check = check
        self._greeter = Greeter()
        self._report: Report | None = None
        self._ranks: Ranks | None = None

    @property
    def port(self) -> int:
        """Where others may try whether they reach this node."""
        return self._greeter.port

    def answer(self, question: str, content: Any) -> Any:
        """The answer to a question of the node that leads."""
        if question == "time":
            return time.time()
        if question == "check":
            self._report = self._check()
            return self._report.to_json()
        if question == "reach":
            return unreachable({name: (str(address), int(port)) for name, (address, port) in content.items()})
        if question == "lock":
            return lock_of_another(Path(content))
        if question == "ready":
            return self._ready(float(content))
        if question == "join" and self._ranks is not None:
            return self._ranks.join(str(content[0]), int(content[1]), int(content[2]), int(content[3]))
        raise ConnectionError(f"it asks for {question!r}")

    def _ready(self, seconds: float) -> int:
        """How many processes are ready for collectives: none where the devices could not be checked."""
        products = None if self._report is None else self._report.find("products")
        if products is None:
            return 0
        self._ranks = Ranks(max(1, len(products.numbers)))
        return self._ranks.count if self._ranks.wait(seconds) else 0

    def serve(self, line: Line) -> None:
        """Answers until it is told to end. Raises OSError where the leading node has gone."""
        while (message := line.receive(self._patience)) != ["end", None]:
            question, content = message
            line.send(self.answer(question, content))

    def close(self) -> None:
        """Ends what was started."""
        self._greeter.close()
        if self._ranks is not None:
            self._ranks.close()
