"""A run as its folder tells it: columns of numbers, events, media, settings, and how it stands.

Everything that shows a run from outside reads it through here. Nothing is written, so that a run that is
under way is not disturbed, and folders of older versions, damaged lines and missing files are read as far as
they go.
"""

from __future__ import annotations

import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from llmkit.config.file_text import similar
from llmkit.errors import UserError
from llmkit.files import open_regular
from llmkit.monitor.jsonlines import JsonLines, Row, parse
from llmkit.monitor.media import read_media
from llmkit.monitor.run_state import RunState, state_of
from llmkit.monitor.series import Columns, Series, read_columns
from llmkit.monitor.stored_settings import StoredSettings, read_settings

FILES = ("events.jsonl", "metrics.jsonl", "run.lock", "manifest.json", "config.yaml")
"""One of them is in every run folder."""
TAIL_BYTES = 2**16
"""Of metrics.jsonl, from which the newest rows are read."""


class RunRecord:
    """What a run folder holds. Each part is read when it is first asked for, and kept.

    folder: as it was named. now: the time by which `state` judges, seconds since 1970.
    """

    def __init__(self, folder: Path, now: float | None = None) -> None:
        self.folder = folder
        self._now = time.time() if now is None else now

    @property
    def name(self) -> str:
        """Of the folder, which may have been moved or copied since the run began."""
        return self.folder.absolute().name

    @cached_property
    def _read(self) -> Columns:
        return read_columns(self.folder / "metrics.jsonl")

    @property
    def columns(self) -> dict[str, Series]:
        """The numbers of metrics.jsonl by column: steps and values."""
        return self._read.numbers

    @property
    def texts(self) -> dict[str, str]:
        """The newest text of each column that holds texts, such as `mfu_peak`."""
        return self._read.texts

    @property
    def damaged_lines(self) -> int:
        """Lines of metrics.jsonl that are no rows."""
        return self._read.damaged

    @cached_property
    def newest(self) -> Row:
        """The newest value of each column in the last rows, read without the rest of the file.

        `step` is that of the last row. What is null in all of them is not in it.
        """
        found: Row = {}
        for row in self._last_rows:
            last = max(row["step"], found.get("step", 0))
            found |= {name: value for name, value in row.items() if value is not None} | {"step": last}
        return found

    @cached_property
    def _last_rows(self) -> list[Row]:
        try:
            with open_regular(self.folder / "metrics.jsonl") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                lines = file.read(TAIL_BYTES).split(b"\n")[:-1]
        except OSError:
            return []
        found = map(parse, lines)  # the first of which may be a part of one, which is none
        return [row for row in found if row is not None and isinstance(row.get("step"), int)]

    @cached_property
    def events(self) -> list[Row]:
        """What happened, oldest first: see docs/design.md."""
        return JsonLines(self.folder / "events.jsonl").rows()

    @cached_property
    def media(self) -> list[Row]:
        """What is recorded beside numbers: tables, histograms, images; oldest first."""
        return read_media(self.folder)

    @cached_property
    def manifest(self) -> Row:
        """What the newest start ran with; empty where it is not there."""
        return _json(self.folder / "manifest.json")

    @cached_property
    def checkpoint(self) -> Row:
        """The newest checkpoint's manifest.json, not verified; empty where there is none."""
        manifests = sorted((self.folder / "checkpoints").glob("step-[0-9]*/manifest.json"))
        return _json(manifests[-1]) if manifests else {}

    @cached_property
    def settings(self) -> StoredSettings:
        """Those of the newest start, each with its origin."""
        return self.settings_of(next((row for row in reversed(self.events) if "config" in row), {}))

    def settings_of(self, start: Row) -> StoredSettings:
        """Those of the start that an event tells of."""
        named = Path(str(start.get("config", "")))
        kept = self.folder / named
        if len(named.parts) != 2 or ".." in named.parts or named.is_absolute() or not kept.is_file():
            kept = self.folder / "config.yaml"
        return read_settings(kept)

    @cached_property
    def state(self) -> RunState:
        """Whether the run is under way, has ended, and how."""
        steps = [row["step"] for row in self._last_rows if row.get("loss_mean") is not None]
        seconds, apart = self.newest.get("step_seconds"), steps[-1] - steps[-2] if len(steps) > 1 else 0
        row_seconds = seconds * apart if isinstance(seconds, int | float) and apart > 0 else None
        return state_of(self.folder, self.events, row_seconds, self._now)


def read_run(folder: Path, now: float | None = None) -> RunRecord:
    """The record of the run in a folder. Raises UserError where there is no run.

    now: seconds since 1970, if another time is meant than that of the clock.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such run folder{similar(folder)}")
    if not any((folder / name).is_file() for name in FILES):
        raise UserError(f"{folder}: is no run folder, it has no {' or '.join(FILES[:2])}; name runs/NAME")
    return RunRecord(folder, now)


def at(content: object, *path: str) -> Any:
    """What lies under these keys of nested JSON objects; None where that is nothing."""
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content


def _json(path: Path) -> Row:
    """The JSON object in a file; empty where there is none."""
    try:
        with open_regular(path) as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
