"""What a run has recorded about its checkpoints: losses, and when they were saved."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.read import Checkpoint
from llmkit.errors import UserError
from llmkit.monitor.record import RunRecord, at
from llmkit.monitor.run_state import time_of


class Recorded:
    """The record of the run that checkpoints are of. run: its folder; None where they lie outside of one."""

    def __init__(self, run: Path | None) -> None:
        self._record = None if run is None else RunRecord(run)

    def loss(self, step: int) -> float | None:
        """The training loss of the steps up to this one, in nats a target; None where it is not on record."""
        return self._value("loss_mean", step)

    def heldout(self, step: int, checkpoint: Checkpoint | None = None) -> float | None:
        """The held-out loss at this step, in nats a target, or that in the checkpoint; else None."""
        if (found := self._value("eval_loss", step)) is not None:
            return found
        progress = {} if checkpoint is None else checkpoint.state.get("progress")
        kept = at(progress, "eval_loss") if at(progress, "evaluated_step") == step else None
        return float(kept) if isinstance(kept, int | float) else None

    def saved(self, folder: Path) -> float | None:
        """When a checkpoint was saved, in seconds since 1970: by the run's events, else by its manifest."""
        if (time := self._saves.get(folder.name)) is not None:
            return time
        with suppress(OSError):
            return (folder / fmt.MANIFEST).stat().st_mtime
        return None

    @cached_property
    def _saves(self) -> dict[str, float]:
        events = [] if self._record is None else self._record.events
        times = {str(row.get("path")): time_of(row) for row in events if row.get("event") == "save"}
        return {name: time for name, time in times.items() if time is not None}

    def _value(self, column: str, step: int) -> float | None:
        if self._record is None:
            return None
        try:
            series = self._record.columns.get(column)
        except UserError:  # a file that this user may not read
            return None
        if series is None or step not in (steps := series.steps.tolist()):
            return None
        value = float(series.values[steps.index(step)])
        return value if math.isfinite(value) else None


def shown_time(seconds: float | None) -> str | None:
    """A time as "2026-12-24T14:32:10+00:00"; None where it is not known."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
