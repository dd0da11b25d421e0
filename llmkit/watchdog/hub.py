"""All ranks of a run in one view: asks for stacks where one is overdue, and finds the verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmkit.watchdog.diagnosis import Known, Verdict, dead, diagnose
from llmkit.watchdog.limits import STOPPED
from llmkit.watchdog.lines import Message

INQUIRY = 2.0
"""Seconds that ranks have to send what they are at."""
LONGEST_PAUSE = 60.0
"""Between two inquiries that found nothing: each pause is twice as long as the one before."""


class Hub:
    """The state of all ranks, by their messages; knows nothing of sockets.

    ask: sends the request for stacks to all of them. world: the number of ranks, which join one by one.
    """

    def __init__(self, ask: Callable[[], None], world: int) -> None:
        self.ranks = {rank: Known(rank, "its host is not known", phase="start") for rank in range(world)}
        self.counted: dict[int, tuple[int, float]] = {}
        self._ask = ask
        self._asked: set[int] = set()
        self._inquiry = 0.0
        self._pause = self._wait = 0.0
        self.closed = False

    def add(self, known: Known) -> None:
        """A rank has joined."""
        self.ranks[known.rank] = known

    def take(self, rank: int, message: Message) -> Verdict | None:
        """A message of a rank; the verdict where it says that the rank has died."""
        known = self.ranks[rank]._replace(silent=0.0)
        match message.get("kind"):
            case "report":
                known = known_of(known, message)
                self.counted[rank] = int(message.get("steps", 0)), float(message.get("own_seconds", 0.0))
            case "evidence":
                known = known._replace(**_fields(message, _EVIDENCE))
                self._asked.discard(rank)
            case "left":
                known = known._replace(left=True)
            case "lost":
                known = known._replace(lost=True)
            case "dead":
                self.ranks[rank] = known._replace(lost=True)
                return None if self.closed else dead(known, str(message.get("cause", "")))
        self.ranks[rank] = known
        return None

    def lose(self, rank: int) -> None:
        """The connection to a rank's watching process has ended without a word."""
        if not self.ranks[rank].left:
            self.ranks[rank] = self.ranks[rank]._replace(lost=True)

    def tick(self, elapsed: float) -> Verdict | None:
        """Time has passed; the verdict where something is wrong."""
        self.ranks = {rank: each._replace(silent=each.silent + elapsed) for rank, each in self.ranks.items()}
        overdue = any((each.overdue or each.stopped) and not each.left for each in self.ranks.values())
        if self.closed or not overdue:
            self._pause = self._wait = self._inquiry = 0.0
            return None
        if self._inquiry:
            self._inquiry -= elapsed
            if self._asked and self._inquiry > 0.0:
                return None
            return self._judge()
        self._wait -= elapsed
        if self._wait <= 0.0:
            self._inquiry = INQUIRY
            self._asked = {rank for rank, each in self.ranks.items() if self._joined(each)}
            self.ranks = {
                rank: each._replace(place="", exchange=None, excused="") for rank, each in self.ranks.items()
            }
            self._ask()
        return None

    def _judge(self) -> Verdict | None:
        self._inquiry = 0.0
        self._pause = self._wait = min(max(1.0, 2.0 * self._pause), LONGEST_PAUSE)
        return diagnose(list(self.ranks.values()), STOPPED)

    @property
    def all_gone(self) -> bool:
        """Whether no rank is left to be watched."""
        return not any(self._joined(each) for each in self.ranks.values())

    @property
    def awaited(self) -> bool:
        """Whether a rank has not joined yet."""
        return not all(each.pid for each in self.ranks.values())

    @staticmethod
    def _joined(known: Known) -> bool:
        return known.pid > 0 and not (known.left or known.lost)


def known_of(known: Known, report: Mapping[str, Any]) -> Known:
    """What is known of a rank after its report."""
    return known._replace(**_fields(report, _REPORT))


_REPORT = {
    "phase": str, "step": int, "age": float, "overdue": bool, "stuck": bool, "stopped": bool, "paused": bool,
}  # fmt: skip
_EVIDENCE = {"place": str, "exchange": (str, type(None)), "excused": str}
MOST = 500
"""Characters of a text from another process."""


def _fields(message: Mapping[str, Any], kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message that are as they should be."""
    found = {name: message[name] for name, kind in kinds.items() if isinstance(message.get(name, ...), kind)}
    return {name: _short(value) for name, value in found.items()}


def _short(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return "".join(character if character.isprintable() else "?" for character in value[:MOST])
