"""Checkpoints by the clock: `checkpoint.every_minutes`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.loop.hook import Hook, Request

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


class SaveTimer(Hook):
    """Asks for a checkpoint so many minutes after the last one, by the clock of rank 0; 0 = never."""

    def __init__(self, minutes: float, now: float) -> None:
        self._seconds, self._last = 60.0 * minutes, now

    def request(self, t: Trainer) -> Request | None:
        """A save, where it is time for one; where it fails, again after as much time."""
        if not self._seconds or t.mesh.rank > 0 or t.clock() - self._last < self._seconds:
            return None
        self._last = t.clock()
        return Request(save=True)

    def after_save(self, t: Trainer, path: Path) -> None:
        """Counts from this save on, whoever asked for it."""
        self._last = t.clock()
