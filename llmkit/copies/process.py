"""The process that copies checkpoints of a run beside training; it alone speaks with the store.

It is told by lines of its standard input: `copy` (what `copies/next.json` in the run folder says is to be
copied; a newer one takes the place of one that waits) and `end` (copy what waits, at once, then the record,
and end). It ends with the trainer, too. On standard output it says what became of it, a JSON object a line:
{"event": "copied", ...}, {"event": "copy_failed", ...}, {"event": "recovered"}, {"sent": BYTES} (see
`Traffic.progress`).
Exit codes: 0 everything was copied; 3 not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.copies.offer import Listed, Offer
from llmkit.copies.owner import BEAT_SECONDS, Known, LostError
from llmkit.copies.sender import Sender
from llmkit.copies.store import Store, Traffic
from llmkit.data.sources.retries import RequestError, one_line
from llmkit.errors import RunFault, UserError
from llmkit.stopping import SIGNALS

DONE, NOT_ALL = 0, 3
FIRST_PAUSE, LONGEST_PAUSE = 30.0, 600.0
"""Seconds after a copy has failed until it is tried again; twice as long after each further failure."""
PROGRESS_SECONDS = 2.0


def say(**fields: Any) -> None:
    """A line for the trainer."""
    with suppress(OSError):
        print(json.dumps(fields), flush=True)


def log(text: str) -> None:
    """A line for logs/copies.log."""
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}", file=sys.stderr, flush=True)


def log_place(error: Exception) -> None:
    """Where in the program an error was raised; not what it says, which may have secrets in it."""
    log("".join(traceback.format_tb(error.__traceback__)))


class Process:
    """Copies what is offered until it is told to end."""

    def __init__(self, folder: Path, url: str, command: str, trainer: int) -> None:
        self._folder, self._trainer, self._traffic = folder, trainer, Traffic()
        self._url, self._command = url, command
        self._wake, self._over, self._ending = threading.Event(), threading.Event(), False
        self._sender: Sender | None = None
        self._copied: Offer | None = None
        self._missing: Offer | None = None
        """The offer whose checkpoint was deleted before it was copied."""
        self._failed: str | None = None
        """What has failed and was told: the name of a checkpoint, "" for the record; None: nothing."""
        self._lost, self._telling = False, threading.Lock()

    def run(self) -> int:
        """Until the end; returns the exit code."""
        for work in (self._listen, self._tell, self._live):
            threading.Thread(target=work, daemon=True).start()
        pause: float | None = None
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            ending = self._ending
            done = self._lost or self._work(ending)
            pause = None if done else min(LONGEST_PAUSE, 2 * pause if pause else FIRST_PAUSE)
            if ending:
                self._over.set()
                return DONE if done and not self._lost and self._missing is None else NOT_ALL

    def _work(self, ending: bool) -> bool:
        """Copies what was offered last, unless it was, and at the end the record; returns whether nothing is
        left to do."""
        name = ""
        try:
            offer = Offer.read(self._folder)
            is_left = offer is not None and offer not in (self._copied, self._missing)
            name = offer.name if offer is not None and is_left else ""
            if self._sender is None:
                known = Known.read(self._folder)
                assert known is not None, "the trainer has written it"
                self._sender = Sender(Store(self._url, self._traffic), self._folder, known, self._command)
            self._sender.claim(log)
            if offer is not None and is_left:
                self._copy(self._sender, offer)
            if ending:
                name = ""
                self._sender.keep_record()
                self._sender.beat(0, ended=True)
            self._recover()
            return True
        except LostError as error:
            self._lose(error)
            return False
        except (RequestError, UserError, RunFault) as error:
            reason = str(error)
        except Exception as error:
            log_place(error)
            reason = one_line(error)
        self._fail(name, reason)
        return False

    def _copy(self, sender: Sender, offer: Offer) -> None:
        """Copies a checkpoint, then the best one, if that was passed over."""
        keeps = offer.rule.kept
        try:
            self._send(sender, offer, lambda: sender.copy(offer.name, offer.files, keeps))
        except FileNotFoundError:
            if Offer.read(self._folder) == offer:  # else another one is next
                self._missing = offer
                self._fail(offer.name, "it was deleted before it was copied")
            return
        best = offer.best
        if best is not None and not sender.has(best.name, best.files):
            try:
                self._send(sender, best, lambda: sender.copy(best.name, best.files, keeps, offer.step))
            except FileNotFoundError:
                log(f"{best.name}, the best one, was deleted before it was copied")
        self._copied, self._missing = offer, None

    def _send(self, sender: Sender, listed: Listed, copy: Callable[[], int]) -> None:
        began = time.monotonic()
        log(f"copying {listed.name}")
        size = copy()
        left = f"; not deleted: {sender.not_deleted}" if sender.not_deleted else ""
        log(f"copied {listed.name}, {size} bytes{left}")
        say(event="copied", path=listed.name, bytes=size, seconds=round(time.monotonic() - began, 3))

    def _fail(self, name: str, reason: str) -> None:
        """Logs a failure; tells the trainer of it, once until something else fails or all is well. name: of
        the checkpoint that is not copied; "": it is the record."""
        with self._telling:
            if self._lost:  # which was told, and ends all that is under way
                return
            log(f"{name or 'the record'} is not copied: {reason}")
            if name != self._failed:
                self._failed = name
                say(event="copy_failed", path=name, reason=reason)

    def _recover(self) -> None:
        """Tells that what has failed does so no more."""
        with self._telling:
            if self._failed is not None and self._missing is None and not self._lost:
                self._failed = None
                say(event="recovered")

    def _lose(self, error: LostError) -> None:
        """Ends all sending, as the copies are another start's now, and tells of that once."""
        with self._telling:
            if not self._lost:
                self._lost = True
                self._traffic.stop.set()
                log(f"nothing more is copied: {error}")
                say(event="copy_failed", path="", reason=str(error), final=True)

    def _listen(self) -> None:
        """Takes the trainer's words; where it has gone, this process ends."""
        for line in sys.stdin:
            self._ending = self._ending or line.strip() == "end"
            self._wake.set()
        if not self._ending:
            log("the trainer has gone")
            os._exit(NOT_ALL)

    def _tell(self) -> None:
        """Says from time to time how much was sent; looks whether the trainer is there."""
        said = 0
        while True:
            time.sleep(PROGRESS_SECONDS)
            if (sent := self._traffic.progress) != said:
                say(sent=(said := sent))
            if os.getppid() != self._trainer:  # children of it may hold the pipe open
                os._exit(NOT_ALL)

    def _live(self) -> None:
        """Shows other starts that this one lives, until all is done."""
        count, failing = 0, False
        while not self._over.wait(BEAT_SECONDS):
            count += 1
            try:
                if self._sender is not None and not self._lost:
                    self._sender.beat(count)
                failing = False
            except LostError as error:
                self._lose(error)
            except Exception as error:  # whatever it is: the next beat may do better
                if not failing:  # what is copied now tells of it; others may take this start for dead
                    known = isinstance(error, (RequestError, UserError, RunFault))
                    if not known:
                        log_place(error)
                    log(f"owner.json is not written: {error if known else one_line(error)}")
                failing = True


def main() -> None:
    """Copies the run in the folder that the command line names, to the URL behind it."""
    os.nice(10)  # training comes first
    for number in SIGNALS:  # of a batch system, to every process of a job: the trainer tells when to end
        signal.signal(number, signal.SIG_IGN)
    folder, url, command, trainer = sys.argv[1:5]
    code = NOT_ALL
    try:
        code = Process(Path(folder), url, command, int(trainer)).run()
    except Exception as error:
        log_place(error)
        log(f"this process ends: {one_line(error)}")
    finally:
        sys.stdout.flush()
        os._exit(code)  # no thread that hangs with the store is waited for


if __name__ == "__main__":
    main()
