"""A run that is watched from outside: its progress, from its files alone."""

from __future__ import annotations

from pathlib import Path

from llmkit.config.mistakes import printable
from llmkit.monitor.progress import Progress
from llmkit.monitor.record import RunRecord
from llmkit.watch.follow import FollowedFile


class WatchedRun:
    """Follows a run folder; nothing in it is ever written.

    progress: as its rows and events tell so far. A record that was cut back or replaced is read anew.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._begin()

    def _begin(self) -> None:
        self._metrics = FollowedFile(self.folder / "metrics.jsonl")
        self._events = FollowedFile(self.folder / "events.jsonl")
        self.progress = Progress(self.folder.resolve().name)

    def poll(self) -> None:
        """Reads what is new; nothing while the folder is not there."""
        if not self.folder.is_dir():
            return
        events, rows = self._events.read(), self._metrics.read()
        if events.anew or rows.anew:  # what was taken of both is void
            self._begin()
            events, rows = self._events.read(), self._metrics.read()
        for event in events.rows:
            self.progress.take_event(event)
        for row in rows.rows:
            self.progress.take(row)
        self._take_manifest()

    def _take_manifest(self) -> None:
        manifest, progress = RunRecord(self.folder).manifest, self.progress
        schedule = manifest.get("schedule")
        if isinstance(schedule, dict):
            progress.save_every = whole(schedule.get("save_every")) or 0
            minutes = schedule.get("save_minutes")
            progress.save_minutes = minutes if isinstance(minutes, int | float) else 0.0
            progress.evaluate_every = whole(schedule.get("evaluate_every")) or 0
        progress.currency = printable(str(manifest.get("currency", "")), 8)
        if progress.max_steps is None:
            progress.max_steps = whole(manifest.get("max_steps"))


def whole(value: object) -> int | None:
    """`value` where it is a whole number that is not negative."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
