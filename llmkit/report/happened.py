"""What happened to a run: marks in its charts, and the table of events."""

from __future__ import annotations

from collections.abc import Sequence

from llmkit.config.mistakes import display, printable
from llmkit.monitor.jsonlines import Row
from llmkit.monitor.record import RunRecord
from llmkit.monitor.series import LARGEST_STEP

KINDS = {
    "save": "save", "resume": "resume", "fault": "fault", "save_failed": "fault", "loss_spike": "spike",
    "router_collapsed": "fault",
    "stop": "stop", "stall": "fault", "data_change": "resume", "early_stopping": "stop", "rollback": "resume",
}  # fmt: skip
"""Events that are drawn into charts, and the style of their marks."""
MOST_MARKS = 200
MOST_EVENTS = 300
DETAIL = 400
"""Characters of an event's details."""


TOTALS = ("phase_seconds", "account", "spent", "config")
"""Of an event, which other parts of the page show."""


def marks(run: RunRecord) -> list[tuple[int, str, str]]:
    """Step, kind and text of what is drawn into charts; of many saves and skipped updates only some."""
    found: list[tuple[int, str, str]] = []
    for event in run.events:
        kind, step = KINDS.get(str(event.get("event"))), event.get("step")
        if kind is not None and type(step) is int and 0 <= step <= LARGEST_STEP:
            found.append((step, kind, f"step {step:,}: {describe(event)}"))
    if (skipped := run.columns.get("skipped")) is not None:
        found += [(int(step), "spike", f"step {step:,}: update skipped") for step in skipped.steps]
    frequent = [mark for mark in found if mark[1] in ("save", "spike")]
    rare = [mark for mark in found if mark[1] not in ("save", "spike")]
    return rare[-MOST_MARKS:] + frequent[:: 1 + len(frequent) // MOST_MARKS]


def table(run: RunRecord) -> tuple[list[tuple[str, str, str, str]], int]:
    """Time, step, name and details of each event, oldest first; and how many saves were left out of it."""
    events = run.events
    saves = [number for number, event in enumerate(events) if event.get("event") == "save"]
    spare = set(saves[: max(0, len(events) - MOST_EVENTS)])
    kept = [event for number, event in enumerate(events) if number not in spare][-MOST_EVENTS:]
    rows = [
        (_time(event), _step(event), str(event.get("event", "")), describe(event, name=False))
        for event in kept
    ]
    return rows, len(events) - len(kept)


def describe(event: Row, name: bool = True) -> str:
    """An event in words, with what it says beside its time and step."""
    kind = str(event.get("event", ""))
    details = [_detail(key, value) for key, value in event.items() if key not in ("time", "event", "step")]
    text = "; ".join(detail for detail in details if detail)
    if not name:
        return printable(text, DETAIL)
    return printable(f"{kind.replace('_', ' ')}{f' ({text})' if text else ''}", DETAIL)


def _detail(key: str, value: object) -> str:
    if key in TOTALS or value in ("", [], {}, None):
        return ""
    if key == "changes" and isinstance(value, list):
        return ", ".join(
            f"{change.get('setting')} {change.get('old')} -> {change.get('new')}"
            for change in value
            if isinstance(change, dict)
        )
    if key in ("reason", "path") and isinstance(value, str):
        return value.strip()
    if isinstance(value, dict):
        return f"{key} {', '.join(f'{name} {_plain(item)}' for name, item in value.items())}"
    if isinstance(value, list):
        return f"{key} {', '.join(map(str, value))}"
    return f"{key} {_plain(value)}"


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else display(value, DETAIL)


def _time(event: Row) -> str:
    return str(event.get("time", ""))[:19].replace("T", " ")


def _step(event: Row) -> str:
    step = event.get("step")
    return f"{step:,}" if type(step) is int else ""


def starts(events: Sequence[Row]) -> list[Row]:
    """The starts that trained."""
    return [event for event in events if event.get("event") in ("start", "resume")]
