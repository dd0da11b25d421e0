"""The process that copies checkpoints of a run beside training; it alone speaks with the store.

It is told by lines of its standard input: `copy` (what `copies/next.json` in the run folder says is to be
copied; a newer one takes the place of one that waits) and `end` (copy what waits, at once, then the record,
and end). It ends with the trainer, too. On standard output it says what became of it, a JSON object a line:
{"event": "copied", ...}, {"event": "copy_failed", ...}, {"sent": BYTES}.
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
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.copies.offer import Offer
from llmkit.copies.owner import BEAT_SECONDS, Known, LostError
from llmkit.copies.sender import Sender
from llmkit.copies.store import Store, Traffic
from llmkit.data.sources.attempts import FailedError, told
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


class Process:
    """Copies what is offered until it is told to end."""

    def __init__(self, folder: Path, url: str, command: str, trainer: int) -> None:
        self._folder, self._trainer, self._traffic = folder, trainer, Traffic()
        self._url, self._command = url, command
        self._wake, self._ending = threading.Event(), False
        self._sender: Sender | None = None
        self._copied: Offer | None = None
        self._failed = ""
        self._lost = False

    def run(self) -> int:
        """Until the end; returns the exit code."""
        for work in (self._listen, self._tell, self._live):
            threading.Thread(target=work, daemon=True).start()
        pause: float | None = None
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            ending = self._ending
            done = self._lost or self._copy_newest(ending)
            pause = None if done else min(LONGEST_PAUSE, 2 * pause if pause else FIRST_PAUSE)
            if ending:
                return DONE if done and not self._lost else NOT_ALL

    def _copy_newest(self, ending: bool) -> bool:
        """Copies what was offered last, unless it was; returns whether nothing is left to do."""
        offer = Offer.read(self._folder)
        name = offer.name if offer is not None else ""
        began = time.monotonic()
        try:
            if self._sender is None:
                known = Known.read(self._folder)
                assert known is not None, "the trainer has written it"
                self._sender = Sender(Store(self._url, self._traffic), self._folder, known, self._command)
            self._sender.claim()
            if offer is not None and offer != self._copied:
                log(f"copying {name}")
                size = self._sender.copy(name, offer.files, offer.rule.kept)
                self._copied, self._failed = offer, ""
                left = f"; not deleted: {self._sender.not_deleted}" if self._sender.not_deleted else ""
                log(f"copied {name}, {size} bytes{left}")
                say(event="copied", path=name, bytes=size, seconds=round(time.monotonic() - began, 3))
            if ending:
                self._sender.keep_record()
                self._sender.beat(0, ended=True)
            return True
        except FileNotFoundError:
            log(f"{name} was deleted before it was copied")
            return Offer.read(self._folder) == offer
        except LostError as error:
            self._lost = True
            reason = str(error)
        except (FailedError, UserError, RunFault) as error:
            reason = str(error)
        except Exception as error:
            traceback.print_exc()
            reason = told(error)
        log(f"{name} is not copied: {reason}")
        if name != self._failed or self._lost:
            self._failed = name
            say(event="copy_failed", path=name, reason=reason)
        return False

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
            if (sent := self._traffic.sent) != said:
                say(sent=(said := sent))
            if os.getppid() != self._trainer:  # children of it may hold the pipe open
                os._exit(NOT_ALL)

    def _live(self) -> None:
        """Shows other starts that this one lives."""
        count = 0
        while True:
            time.sleep(BEAT_SECONDS)
            count += 1
            with suppress(FailedError, UserError, RunFault):
                if self._sender is not None and not self._ending:
                    self._sender.beat(count)


def main() -> None:
    """Copies the run in the folder that the command line names, to the URL behind it."""
    os.nice(10)  # training comes first
    for number in SIGNALS:  # of a batch system, to every process of a job: the trainer tells when to end
        signal.signal(number, signal.SIG_IGN)
    folder, url, command, trainer = sys.argv[1:5]
    code = NOT_ALL
    try:
        code = Process(Path(folder), url, command, int(trainer)).run()
    finally:
        sys.stdout.flush()
        os._exit(code)  # no thread that hangs with the store is waited for


if __name__ == "__main__":
    main()
