"""The page of `llmkit report`: one HTML file that needs nothing else, and no script to be read."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from llmkit import __version__
from llmkit.monitor.record import RunRecord
from llmkit.monitor.run_state import RunState
from llmkit.monitor.stored_settings import differences
from llmkit.monitor.text import duration
from llmkit.report import media, sections
from llmkit.report.curves import charts
from llmkit.report.facts import facts, figures, names_of, progress
from llmkit.report.happened import marks, table
from llmkit.report.heatmap import heatmaps
from llmkit.report.time_use import time_use

MARK_KINDS = (
    ("resume", "resumed"), ("save", "saved"), ("stop", "stopped"), ("fault", "fault"),
    ("spike", "spike or skipped update"),
)  # fmt: skip


class ShownRun:
    """What the page says of a run in its head."""

    def __init__(self, run: RunRecord, name: str) -> None:
        self.record, self.name = run, name

    @cached_property
    def state(self) -> RunState:
        return self.record.state

    @cached_property
    def progress(self) -> str:
        return progress(self.record)

    @cached_property
    def figures(self) -> dict[str, str]:
        return figures(self.record)

    @cached_property
    def facts(self) -> list[tuple[str, str]]:
        return facts(self.record)

    def fact(self, name: str) -> str:
        """The fact of this name, "" where it is not known."""
        return dict(self.facts).get(name, "")


def render(runs: Sequence[RunRecord]) -> bytes:
    """The page on one run, or on several beside each other, as UTF-8.

    No text of a run can become markup or script: the template escapes all, and the page's own policy forbids
    every script but its own and every request.
    """
    style, script, page = (
        files("llmkit.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js", "page.html")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["duration"] = duration
    numbers = itertools.count(1)
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    names = names_of(runs)
    shown = [ShownRun(run, name) for run, name in zip(runs, names, strict=True)]
    happened = marks(runs[0]) if len(runs) == 1 else []
    text = environment.from_string(page).render(
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{allowed}'",
        style=Markup(style), script=Markup(script), version=__version__,
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        title=" | ".join(names), runs=shown, charts=charts(runs, names, happened),
        has_marks=bool(happened),
        mark_kinds=[each for each in MARK_KINDS if each[0] in {kind for _, kind, _ in happened}],
        ids=lambda kind: f"{kind}{next(numbers)}",
        **(_of_one(runs[0]) if len(runs) == 1 else _of_several(shown)),
    )  # fmt: skip
    return text.encode(errors="backslashreplace")  # names and samples may hold lone surrogates


def _of_one(run: RunRecord) -> dict[str, Any]:
    events, left_out = table(run)
    steps, rows = sections.tasks(run)
    sources = sections.sources(run)
    return {
        "time_use": time_use(run), "sources": sources,
        "source_columns": list(sources[0].figures) if sources else [], "heatmaps": list(heatmaps(run)),
        "histograms": media.histograms(run), "pictures": media.pictures(run), "tables": media.tables(run),
        "task_steps": steps, "task_rows": rows, "events": events, "events_left_out": left_out,
        "changed": run.settings.changed(), "settings_note": sections.settings_by_start(run),
        "reproduce": sections.reproduce(run),
    }  # fmt: skip


def _of_several(shown: Sequence[ShownRun]) -> dict[str, Any]:
    return {
        "figure_names": list(dict.fromkeys(name for run in shown for name in run.figures)),
        "fact_names": list(dict.fromkeys(name for run in shown for name, _ in run.facts)),
        "differing": differences([run.record.settings for run in shown]),
    }
