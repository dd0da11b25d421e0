"""A checkpoint on request: the file `SAVE` in the run folder, as `llmkit checkpoint save` makes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.checkpoint.format import folder_name
from llmkit.loop.hook import Hook, Request
from llmkit.run_folder import SAVE

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


class SaveRequest(Hook):
    """Asks for a checkpoint when rank 0 finds the file, and removes it when that is saved.

    Each file is asked for once: where the save fails it stays, and the next save, whoever asks for it, is the
    answer.
    """

    def __init__(self) -> None:
        self._asked: tuple[int, int] | None = None
        self._since = 0
        """The step after which it was asked for."""

    def request(self, t: Trainer) -> Request | None:
        """A save, where there is a file that was not there before."""
        if t.mesh.rank > 0:
            return None
        found = _file(t)
        if found is None or found == self._asked:
            return None
        self._asked, self._since = found, t.state.step
        return Request(save=True)

    def after_save(self, t: Trainer, path: Path) -> None:
        """Removes the file, unless it asks for what this checkpoint has not: one that was begun before, or a
        newer file."""
        if self._asked is not None and path.name >= folder_name(self._since) and _file(t) == self._asked:
            t.folder.remove(SAVE)


def _file(t: Trainer) -> tuple[int, int] | None:
    """Which file it is; None where there is none, or the disk does not answer."""
    try:
        status = os.lstat(t.folder.path / SAVE)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns
