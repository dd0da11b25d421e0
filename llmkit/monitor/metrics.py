"""metrics.jsonl: the record of a run, a row a logged step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmkit.monitor.jsonlines import JsonLines, Row
from llmkit.monitor.sink import Sink


class MetricsFile(JsonLines):
    """Rows of a run, written by one process, in the order of their steps.

    Their columns: `llmkit.monitor.columns`. Non-finite values become null.
    """

    def cut_back(self, step: int) -> int:
        """Drops the rows after `step` and any damaged line, so that no step appears twice on resume.

        Returns how many lines were dropped. Call it before the first `append`, and before a mirror
        of the file starts. Raises RunFault if the file cannot be replaced; it is then unchanged.
        """
        return self.keep(lambda row: isinstance(row.get("step"), int) and row["step"] <= step)

    def evaluation_at(self, step: int) -> Row | None:
        """The evaluation row of this step, or None."""
        found = (row for row in reversed(self.rows()) if row.get("step") == step and "eval_loss" in row)
        return next(found, None)


class MetricsSink(Sink):
    """Appends each row to metrics.jsonl; `note` is called where the disk refuses rows."""

    def __init__(self, file: MetricsFile, note: Callable[[str], None]) -> None:
        self._file, self._note = file, note
        self._noted = False

    def write(self, row: Mapping[str, Any]) -> None:
        """Returns when the row has reached the kernel, or waits in memory for a disk that takes it."""
        self._file.append(row)
        fault = self._file.fault
        if fault is not None and not self._noted:
            self._note(f"metrics.jsonl cannot be written, its rows wait in memory: {fault}")
        self._noted = fault is not None
