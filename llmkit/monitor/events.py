"""events.jsonl: what happened to a run, in order: starts, saves, faults, stops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.config.redaction import Redactor
from llmkit.errors import UserError
from llmkit.monitor.jsonlines import JsonLines, Row
from llmkit.ownership.claim import Claim
from llmkit.stopping import Stopped

MAX_REASON = 500
"""Characters of an error's message that are recorded."""


class EventLog:
    """Appends events of a run; the last one tells how the run ended. claim: see `JsonLines`. listeners:
    called with each event.

    What gives access is taken out: the message of an error may quote a URL, or the value of a variable.
    """

    def __init__(self, path: Path | str, claim: Claim | None = None) -> None:
        self._file, self._redactor = JsonLines(path, claim), Redactor(os.environ)
        self.listeners: list[Callable[[Row], None]] = []

    @property
    def fault(self) -> str | None:
        """Why the last event is not in the file yet, or None."""
        return self._file.fault

    def open(self) -> None:
        """Opens a copy of the file now, if there is one, so that no earlier start writes into it.

        Raises UserError where no event could ever be written, RunFault where there is no room.
        """
        self._file.open()
        self._file.detach()
        self._file.open()

    def record(self, event: str, **fields: Any) -> None:
        """Appends `{"time": now in UTC, "event": event, ...fields}`; a full disk does not raise.

        A `reason` has at most MAX_REASON characters on record.
        """
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"time": time, "event": event, **self._redactor.value(fields)}
        if "reason" in row:  # cut only now: half a secret would not be known as one
            row["reason"] = row["reason"][:MAX_REASON]
        self._file.append(row)
        for listener in self.listeners:
            listener(row)

    def rows(self) -> list[Row]:
        """Every event, oldest first."""
        return self._file.rows()

    def close(self) -> None:
        """Closes the file; a later `record` opens it again."""
        self._file.close()


def event_time(event: Mapping[str, Any]) -> datetime | None:
    """When an event was, with its time zone; None where it does not say, as after damage."""
    try:
        time = datetime.fromisoformat(event["time"])
    except (KeyError, TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@contextmanager
def failure_recorded(events: EventLog) -> Iterator[None]:
    """For what comes before the first step: an error in here is recorded, and goes on.

    A UserError is the event "refused", any other "fault"; `reason` says why. A stop is none of them.
    """
    try:
        yield
    except Stopped:
        raise
    except UserError as error:
        events.record("refused", reason=str(error))
        raise
    except BaseException as error:
        events.record("fault", reason=f"{type(error).__name__}: {error}")
        raise
