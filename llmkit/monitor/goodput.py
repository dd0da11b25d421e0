"""Where the time of a run went, over all its starts: in steps that count, or lost, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from llmkit.monitor.events import event_time
from llmkit.monitor.jsonlines import Row

LOST = ("start", "compile", "data", "evaluate", "save", "other", "redone", "down")
"""Classes of time that advanced no training. redone: in steps that no checkpoint held, and that were done
again. down: from the last record of a start to the next start."""
IN_WORDS = {
    "start": "starting", "compile": "compiling", "data": "waiting for data", "evaluate": "evaluating",
    "save": "saving", "other": "other", "redone": "steps done again", "down": "between starts",
}  # fmt: skip
"""The classes as people are told of them."""


@dataclass(frozen=True)
class Account:
    """Seconds since the first start of a run. useful: in steps that count. lost: by the classes in `LOST`."""

    useful: float = 0.0
    lost: Mapping[str, float] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        return self.useful + sum(self.lost.values())

    @property
    def goodput(self) -> float | None:
        """Share of all time that advanced training; None before any time has passed."""
        return self.useful / self.elapsed if self.elapsed > 0.0 else None

    def with_phases(self, seconds: Mapping[Any, float]) -> Account:
        """The account with a start of such phases (`Phases.totals`) added."""
        lost = {name: self.lost.get(name, 0.0) + seconds.get(name, 0.0) for name in LOST}
        return Account(self.useful + seconds.get("step", 0.0), lost)

    def columns(self) -> dict[str, float | None]:
        """For a row: `elapsed_seconds`, `goodput` and `lost/CLASS`."""
        lost = {f"lost/{name}": round(self.lost.get(name, 0.0), 3) for name in LOST}
        goodput = None if self.goodput is None else round(self.goodput, 6)
        return {"elapsed_seconds": round(self.elapsed, 3), "goodput": goodput, **lost}

    def to_json(self) -> dict[str, Any]:
        """For an event."""
        return {"useful": self.useful, "lost": dict(self.lost)}

    @classmethod
    def of_event(cls, event: Row) -> Account | None:
        """The account of an event; None for one without, as those of older versions."""
        found = event.get("account")
        if not isinstance(found, Mapping) or not isinstance(found.get("lost"), Mapping):
            return None
        return cls(_seconds(found.get("useful")), {name: _seconds(found["lost"].get(name)) for name in LOST})

    @classmethod
    def of_row(cls, row: Row) -> Account | None:
        """The account of a row of metrics.jsonl; None for one without."""
        elapsed = _seconds(row.get("elapsed_seconds"))
        if not elapsed:
            return None
        lost = {name: _seconds(row.get(f"lost/{name}")) for name in LOST}
        return cls(max(0.0, elapsed - sum(lost.values())), lost)

    def describe(self) -> str:
        """One line: the share of the time that advanced training, and what else took half a percent."""
        lost = ((seconds, IN_WORDS.get(name, name)) for name, seconds in self.lost.items())
        shares = sorted(lost, reverse=True)
        parts = [(self.useful, "in steps that count")]
        parts += [each for each in shares if each[0] >= 0.005 * self.elapsed > 0.0]
        return ", ".join(f"{100 * seconds / (self.elapsed or 1.0):.0f} % {name}" for seconds, name in parts)


class Ledger:
    """The account of a run that goes on. totals: seconds of this process by phase, as of now."""

    def __init__(self, totals: Callable[[], Mapping[Any, float]]) -> None:
        self._totals = totals
        self._before = Account()
        self._restarts = 0

    def go_on(self, rows: Sequence[Row], events: Sequence[Row], step: int) -> None:
        """Adds all earlier starts; arguments as of `carried_over`."""
        age = sum(self._totals().values())
        self._before = carried_over(rows, events, step, datetime.now(UTC) - timedelta(seconds=age))
        self._restarts = sum(_begins(event) for event in events)

    def take_back(self, rows: Sequence[Row], events: Sequence[Row], step: int) -> None:
        """Counts the time of the steps after `step` as that of steps done again; arguments as in `go_on`."""
        redone = max(0.0, self.now().useful - _useful_until(step, rows, events))
        lost = {**self._before.lost, "redone": self._before.lost.get("redone", 0.0) + redone}
        self._before = Account(self._before.useful - redone, lost)

    def now(self) -> Account:
        """The account up to now."""
        return self._before.with_phases(self._totals())

    def columns(self) -> dict[str, Any]:
        """The columns of a row that hold totals."""
        return {**self.now().columns(), "restarts": self._restarts}


def carried_over(rows: Sequence[Row], events: Sequence[Row], step: int, now: datetime) -> Account:
    """The account of all earlier starts, as a start finds it that goes on from the checkpoint of `step`.

    Starts of versions that kept no account are left out. The time between two starts is taken from the wall
    clock, never less than zero; that after the run was done is left out. The time of the steps after the
    checkpoint is no longer useful. rows: of metrics.jsonl, with those after the checkpoint. events: all so
    far. now: when the new start began.
    """
    starts = [
        index
        for index, event in enumerate(events)
        if _begins(event) and Account.of_event(event) and event_time(event) is not None
    ]
    if not starts:
        return Account()
    begun = events[starts[-1]]
    at_start, began = Account.of_event(begun), event_time(begun)
    assert at_start is not None and began is not None
    records = [*_accounts(events, Account.of_event), *_accounts(rows, Account.of_row)]
    last = max(records, key=lambda account: account.elapsed)
    seen = began.timestamp() + last.elapsed - at_start.elapsed
    done = any(event.get("event") == "done" for event in events[starts[-1] :])
    down = 0.0 if done else max(0.0, now.timestamp() - seen)
    redone = max(0.0, last.useful - _useful_until(step, rows, events))
    lost = dict(last.lost)
    lost["redone"] = lost.get("redone", 0.0) + redone
    lost["down"] = lost.get("down", 0.0) + down
    return Account(last.useful - redone, lost)


def _seconds(value: object) -> float:
    """A number of a record; 0 for what is none, as after damage."""
    return float(value) if isinstance(value, int | float) and 0.0 <= value < math.inf else 0.0


def _begins(event: Row) -> bool:
    return event.get("event") in ("start", "resume")


def _useful_until(step: int, rows: Sequence[Row], events: Sequence[Row]) -> float:
    """Useful seconds up to the checkpoint of `step`; where it was killed before the save was on record, up to
    the row before it."""
    saves = (
        event for event in reversed(events) if event.get("event") == "save" and event.get("step") == step
    )
    before = (row for row in reversed(rows) if isinstance(row.get("step"), int) and row["step"] <= step)
    known = chain(_accounts(saves, Account.of_event), _accounts(before, Account.of_row))
    return next((account.useful for account in known), 0.0)


def _accounts(records: Iterable[Row], account_of: Callable[[Row], Account | None]) -> Iterator[Account]:
    return (account for record in records if (account := account_of(record)) is not None)
