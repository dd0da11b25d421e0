"""Run folders as a run leaves them, without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def make_run(
    folder: Path, steps: int, max_steps: int | None = 100, save_every: int = 10, evaluate_every: int = 0,
    end: dict[str, Any] | None = None, layout: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A folder with a row for each step. end: the event that it ended with; None = it runs somewhere."""
    folder.mkdir(parents=True)
    schedule = {"save_every": save_every, "evaluate_every": evaluate_every}
    manifest = {"max_steps": max_steps, "schedule": schedule, "layout": layout or {"world_size": 1}}
    manifest["currency"] = "EUR"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    add_event(folder, {"event": "start", "step": 0})
    for step in range(1, steps + 1):
        add_row(folder, {"step": step, "loss": 10.0 - step, "step_seconds": 0.5, "tokens_per_second": 2e3})
    if end is not None:
        add_event(folder, end)
    return folder


def add_row(folder: Path, row: dict[str, Any]) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def add_event(folder: Path, event: dict[str, Any]) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": "2026-11-29T10:00:00.000+00:00", **event}) + "\n")
