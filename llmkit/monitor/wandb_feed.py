"""What is new in the record of a run, given to wandb line by line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llmkit.config.redaction import Redactor
from llmkit.monitor.jsonlines import Row, parse
from llmkit.monitor.wandb_alerts import WAIT_SECONDS, Alert, StallWatch, of_event, of_row
from llmkit.monitor.wandb_journal import FILES, Journal, digest
from llmkit.monitor.wandb_rows import Best, chart_values, events_table, media

MOST_MEDIA_ERRORS = 2
"""Attempts at an item of media.jsonl in one start of wandb; fewer than those at a row."""


class Tail:
    """The lines of a file that were not passed on yet. A file that is not there yet has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self.offset = 0

    def lines(self) -> Iterator[tuple[bytes, int]]:
        """The whole lines from `offset` on, each with the offset at which it ends."""
        if self._file is None:
            try:
                # Kept open: a trainer replaces the file where it drops rows.
                self._file = open(self._path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                return
        self._file.seek(self.offset)
        end = self.offset
        for line in self._file:
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield line, end


    def size(self) -> int:
        """Bytes of it now; 0 where it is not there."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    def is_replaced(self) -> bool:
        """Whether another file has taken the place of the one that is read."""
        try:
            is_same = os.path.samestat(os.stat(self._path), os.fstat(self._file.fileno()))
        except (FileNotFoundError, AttributeError):  # none was opened yet
            return False
        return not is_same

    def reopen(self) -> None:
        """From now on reads the file that is there, from its beginning."""
        if self._file is not None:
            self._file.close()
        self._file, self.offset = None, 0


class Feed:
    """Gives the lines of metrics.jsonl and media.jsonl to a W&B run, each once, and sends alerts.

    journal: of what the W&B run has already; the first line that has no entry there is the first to be given.
    alert: whether alerts are sent. first_news: offsets in metrics.jsonl and events.jsonl from which on what
    happens is news.
    """

    def __init__(
        self, run_dir: Path, journal: Journal, redactor: Redactor, say: Callable[[str], None],
        alert: bool = False, first_news: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self._run_dir, self._redactor, self._say = run_dir, redactor, say
        self.journal = journal
        self.best = Best()
        self.given = dict.fromkeys(FILES, 0)
        """Lines given to wandb by this feed, by kind."""
        self._tails = {kind: Tail(run_dir / FILES[kind]) for kind in FILES}
        self._news = Tail(run_dir / FILES["e"])
        self._alert = alert
        self._first_news = dict(first_news or {})
        self._news.offset = self._first_news.get("e", 0)
        self._since = Tail(run_dir / FILES["e"])  # what happened since this start of the mirror
        self._since.offset = self._since.size()
        self._rollbacks = 0  # that were followed
        self._media_errors = 0
        self._stall = StallWatch(time.monotonic())
        for kind, tail in self._tails.items():
            tail.offset = self._end_of_given(kind, tail)
        for line, end in Tail(run_dir / FILES["m"]).lines():
            if end > self._tails["m"].offset:
                break
            self.best.see(parse(line) or {})

    def _end_of_given(self, kind: str, tail: Tail) -> int:
        """The offset of the first line that the W&B run has not.

        Behind it there may be lines that it has: among rows that are done again one may be as it was.
        """
        given, found = self.journal.digests(kind), 0
        for line, end in tail.lines():
            if digest(line) in given:
                found = end
            elif kind != "e" and self._is_for_wandb(kind, line):
                break
        return found

    def _is_for_wandb(self, kind: str, line: bytes) -> bool:
        return (parse(line) if kind == "m" else self._media_values(line, lambda _: None)) is not None

    def pass_on(self, run: Any) -> bool:
        """Gives everything that is new to `run`; returns whether there was anything.

        Raises whatever wandb raises; the line is then given again by the next call.
        """
        before = len(self.journal)
        self._follow_rollbacks()
        for line, end in self._tails["m"].lines():
            row = parse(line)
            if row is not None:
                if end > self._first_news.get("m", end) and (alert := of_row(row)):
                    self._send(run, alert)
                    self._first_news["m"] = end
                self._give(run, "m", line, chart_values(self._redactor.names(row)))
                self._tails["m"].offset = end  # whatever fails from here on, it is given
                if changed := self.best.see(row):
                    run.summary.update(changed)
            self._tails["m"].offset = end
        self._pass_on_media(run)
        self._pass_on_news(run, len(self.journal) > before)
        return len(self.journal) > before

    def _follow_rollbacks(self) -> None:
        """Reads anew what a rollback has cut back; what another start of the run does is not for this one."""
        if not any(self._tails[kind].is_replaced() for kind in ("m", "a")):
            return
        happened = [(parse(line) or {}).get("event") for line, _ in self._since.lines()]
        if happened.count("rollback") == self._rollbacks or {"start", "resume"} & set(happened):
            return
        self._rollbacks = happened.count("rollback")
        for kind in ("m", "a"):
            self._tails[kind].reopen()
            self._tails[kind].offset = self._end_of_given(kind, self._tails[kind])
        self._first_news["m"] = self._tails["m"].offset

    @property
    def news(self) -> dict[str, int]:
        """Offsets from which on no alert was sent yet."""
        rows = max(self._tails["m"].offset, self._first_news.get("m", 0))
        return {"m": rows, "e": self._news.offset}

    def give_events(self, run: Any) -> None:
        """Gives the table of all events, if there are any that are not in the one given before."""
        tail = self._tails["e"]
        new = list(tail.lines())
        if not new:
            return
        whole = [parse(line) for line, _ in Tail(self._run_dir / FILES["e"]).lines()]
        events = [self._redactor.value(event) for event in whole if event is not None]
        line, tail.offset = new[-1]
        self._give(run, "e", line, events_table(events))

    def _pass_on_media(self, run: Any) -> None:
        for line, end in self._tails["a"].lines():
            if not self.media_are_taken:
                return
            if (values := self._media_values(line, self._say)) is not None:
                try:
                    self._give(run, "a", line, values)
                except Exception as error:  # wandb asks the server before it takes a table
                    self._media_errors += 1
                    if self.media_are_taken:
                        raise
                    self._say(f"{FILES['a']} is left for later ({type(error).__name__}: {error})")
                    return
            self._media_errors, self._tails["a"].offset = 0, end

    def _media_values(self, line: bytes, say: Callable[[str], None]) -> Row | None:
        """What wandb takes for a line of media.jsonl; None where that is no item."""
        if (item := parse(line)) is None:
            return None
        try:
            return media(self._redactor.value(item), self._run_dir)
        except ValueError as error:
            say(f"an item of {FILES['a']} is passed over ({error})")
            return None

    @property
    def media_are_taken(self) -> bool:
        """Whether wandb takes media; where it does not, rows go on all the same."""
        return self._media_errors < MOST_MEDIA_ERRORS

    def _give(self, run: Any, kind: str, line: bytes, values: Row) -> None:
        self.journal.append(kind, line)
        number = len(self.journal) - 1
        try:
            run.log(values, step=number, commit=True)
        except BaseException:
            self.journal.keep(number)
            raise
        self.given[kind] += 1

    def _pass_on_news(self, run: Any, rows: bool) -> None:
        now = time.monotonic()
        if rows:
            self._stall.saw_rows(now)
        for line, end in self._news.lines():
            event = self._redactor.value(parse(line) or {})
            if alert := of_event(event):
                self._send(run, alert)
            self._news.offset = end
        if stalled := self._stall.check(now):
            self._send(run, stalled)

    def _send(self, run: Any, alert: Alert) -> None:
        if self._alert:
            run.alert(alert.title, alert.text, level=alert.level, wait_duration=WAIT_SECONDS)
