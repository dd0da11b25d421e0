"""Alerts: what happened to a run that somebody should know at once."""

from __future__ import annotations

from typing import Literal, NamedTuple

from llmkit.monitor.jsonlines import Row

Level = Literal["INFO", "WARN", "ERROR"]
STALL_SECONDS = 900.0
"""Without a row for this long, and ten times the longest gap between rows before, a run counts as stalled."""
WAIT_SECONDS = 600
"""W&B sends no second alert of the same title within this time."""


class Alert(NamedTuple):
    """A message that W&B sends on, by mail or chat. title: below 64 characters."""

    title: str
    text: str
    level: Level


_LEVELS: dict[str, tuple[str, Level]] = {
    "loss_spike": ("spike of loss or gradient", "WARN"),
    "router_collapsed": ("a router sends all tokens to few experts", "WARN"),
    "gradient_outlier": ("a rank has a huge gradient", "WARN"),
    "rollback": ("gone back after a spike", "WARN"),
    "stall": ("stalled", "WARN"),
    "stop": ("stopped early", "WARN"),
    "fault": ("ended by a fault", "ERROR"),
    "dead_rank": ("a process has died", "ERROR"),
    "hung_rank": ("a process hangs", "ERROR"),
    "stalled": ("a process waits for its data", "ERROR"),
    "straggler": ("a process is slower than the others", "WARN"),
    "save_failed": ("a checkpoint could not be saved", "ERROR"),
    "early_stopping": ("stopped by early stopping", "INFO"),
    "done": ("finished", "INFO"),
}


def of_event(event: Row) -> Alert | None:
    """The alert for an event of events.jsonl; None for what is no news."""
    found = _LEVELS.get(str(event.get("event")))
    if found is None:
        return None
    title, level = found
    shown = [
        f"{name}: {value}"
        for name, value in event.items()
        if name not in ("time", "event") and isinstance(value, str | int | float)
    ]
    return Alert(title, "; ".join([*shown, str(event.get("time", ""))]), level)


def of_row(row: Row) -> Alert | None:
    """The alert for a row of metrics.jsonl: an update that was void."""
    if row.get("skipped") is not True:
        return None
    step = row.get("step")
    return Alert(
        "gradient not finite", f"step {step}: the gradient was not finite; its update was skipped", "WARN"
    )


class StallWatch:
    """Notices that rows have stopped coming.

    now: seconds by any clock that stands still for nobody.
    """

    def __init__(self, now: float) -> None:
        self._last, self._longest, self._told = now, 0.0, False

    def saw_rows(self, now: float) -> None:
        """Rows have come."""
        if not self._told:
            self._longest = max(self._longest, now - self._last)
        self._last, self._told = now, False

    def check(self, now: float) -> Alert | None:
        """The alert, once for each stall."""
        waited = now - self._last
        if self._told or waited < max(STALL_SECONDS, 10 * self._longest):
            return None
        self._told = True
        return Alert("stalled", f"no row since {waited / 60:.0f} minutes; the process is still there", "WARN")
