"""Where each second of a run went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llmkit.monitor.columns import column_of
from llmkit.monitor.goodput import IN_WORDS
from llmkit.monitor.jsonlines import Row
from llmkit.monitor.record import RunRecord, at
from llmkit.monitor.run_state import time_of
from llmkit.report.happened import starts

TRAINING = "steps that count"
LONGEST = 1e12
"""Seconds; what a damaged file says beyond it is left out."""
_MEANINGS = {
    TRAINING: "forward, backward and update of steps that are part of the run",
    "data": "waiting for a batch",
    "step": "steps, among them those that were done again",
    "running": "all of it; the version that ran did not divide it",
    "rest": "what no phase has on record",
    "down": "from the last record of a start to the next start",
}


@dataclass(frozen=True)
class Use:
    """Seconds of a kind. begins, share: in percent of all, as the bar of a waterfall lies."""

    name: str
    seconds: float
    begins: float
    share: float
    meaning: str


def time_use(run: RunRecord) -> list[Use]:
    """The wall time since the first start by what it went to, training first; empty where nothing tells."""
    return _bars(max(_accounts(run), key=lambda each: sum(each.values())) or _by_events(run))


def _accounts(run: RunRecord) -> Iterator[dict[str, float]]:
    """What the newest row and the events say of it in all."""
    total = run.columns.get("elapsed_seconds")
    lost = {name.removeprefix("lost/"): c.last for name, c in run.columns.items() if name.startswith("lost/")}
    known = {name: seconds for name, seconds in lost.items() if seconds is not None}
    elapsed = total.last if total is not None else None
    yield {} if elapsed is None else {TRAINING: max(0.0, elapsed - sum(known.values())), **known}
    for event in run.events:
        useful, lost_by_class = at(event, "account", "useful"), at(event, "account", "lost")
        if _is_time(useful) and isinstance(lost_by_class, dict):
            yield {TRAINING: useful, **{name: s for name, s in lost_by_class.items() if _is_time(s)}}


def taken(event: Row) -> float:
    """Seconds from the run's first command to an event, where that has the account of it; else 0."""
    useful, lost = at(event, "account", "useful"), at(event, "account", "lost")
    parts = [useful, *(lost.values() if isinstance(lost, dict) else ())]
    return sum(part for part in parts if _is_time(part))


def _is_time(seconds: Any) -> bool:
    return isinstance(seconds, int | float) and 0 <= seconds < LONGEST


def _by_events(run: RunRecord) -> dict[str, float]:
    """As the ends of the starts have it, for runs whose rows do not: from each to the next."""
    begun = starts(run.events)
    known = [(event, time) for event in begun if (time := time_of(event)) is not None]
    found: defaultdict[str, float] = defaultdict(float)
    for number, (event, begins) in enumerate(known):
        after = run.events[run.events.index(event) + 1 :]
        until = known[number + 1][1] if number + 1 < len(known) else None
        times = [(other, time_of(other)) for other in after]
        own = [(other, time) for other, time in times if time is not None and (until is None or time < until)]
        own = [(other, time) for other, time in own if other.get("event") != "refused"]
        ends = max((time for _, time in own), default=begins)
        phases = (other["phase_seconds"] for other, _ in own if isinstance(other.get("phase_seconds"), dict))
        spent = {name: value for name, value in next(phases, {}).items() if _is_time(value)}
        spent.pop("start", None)  # most of it was before the event
        for name, seconds in spent.items():
            found[name] += seconds
        found["rest"] += max(0.0, ends - begins - sum(spent.values()))
        if until is not None:
            found["down"] += max(0.0, until - ends)
    if found["rest"] and not found.keys() - {"rest", "down"}:
        found["running"] = found.pop("rest")
    return dict(found)


def _bars(seconds: dict[str, float]) -> list[Use]:
    total = sum(seconds.values())
    if total <= 0:
        return []
    found, begins = [], 0.0
    for name in sorted(seconds, key=lambda name: (name not in (TRAINING, "step", "running"), -seconds[name])):
        share = 100 * seconds[name] / total
        column = column_of(f"lost/{name}")
        meaning = _MEANINGS.get(name) or (column.meaning if column else "")
        if seconds[name] > 0:
            found.append(Use(IN_WORDS.get(name, name), seconds[name], begins, share, meaning))
        begins += share
    return found
