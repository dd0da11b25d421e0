"""The rows of a run as TensorBoard's event files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import UserError
from llmkit.extras import missing_extra
from llmkit.monitor.sink import Sink


class TensorBoardSink(Sink):
    """Writes each number of each row at its step into `folder`.

    Raises UserError where the package is missing.
    """

    def __init__(self, folder: Path) -> None:
        if missing := missing_extra("tensorboard", "tensorboard"):
            raise UserError(f"monitor.tensorboard: {missing}; else set monitor.tensorboard to false")
        self._folder = folder
        self._writer: Any = None

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row; what an earlier start wrote from the step of the first one on is done again."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=row["step"])
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Closes the event file."""
        if self._writer is not None:
            self._writer.close()
