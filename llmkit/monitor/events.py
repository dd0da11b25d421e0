"""events.jsonl: what happened to a run, in order: starts, saves, faults, stops."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.monitor.jsonlines import JsonLines, Row


class EventLog:
    """Appends events of a run; the last one tells how the run ended."""

    def __init__(self, path: Path | str) -> None:
        self._file = JsonLines(path)

    @property
    def fault(self) -> str | None:
        """Why the last event is not in the file yet, or None."""
        return self._file.fault

    def record(self, event: str, **fields: Any) -> None:
        """Appends `{"time": now in UTC, "event": event, ...fields}`; a full disk does not raise."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.append({"time": time, "event": event, **fields})

    def rows(self) -> list[Row]:
        """Every event, oldest first."""
        return self._file.rows()

    def last(self) -> Row | None:
        """The newest event, or None if nothing happened yet."""
        rows = self.rows()
        return rows[-1] if rows else None

    def close(self) -> None:
        """Closes the file; a later `record` opens it again."""
        self._file.close()
