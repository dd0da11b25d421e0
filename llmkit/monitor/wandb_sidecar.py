"""The process that mirrors the record of a run to Weights & Biases; it alone imports wandb.

It ends when the trainer writes its exit code to standard input, or is gone. Where wandb breaks down, or the
server was not there, it begins anew after a while: what the W&B run then has is asked of the server, and the
rest is given again from the record.
Exit codes: 0 all is where it belongs; 3 not all is on the server, `llmkit sync` sends it; 4 gave up.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from llmkit.config.redaction import Redactor
from llmkit.monitor.wandb_feed import Feed
from llmkit.monitor.wandb_finish import hand_over
from llmkit.monitor.wandb_open import is_reachable, open_run
from llmkit.monitor.wandb_session import read_session
from llmkit.proc import descendants, kill_tree

POLL_SECONDS = 1.0
MAX_ERRORS = 3
"""In a row, before wandb is started anew."""
STEADY_SECONDS = 3600.0
"""A start that has lasted so long before it broke down counts as the first one again."""
MAX_STARTS = 10
"""Of wandb in one process of training; the pause before each is twice that before the last one."""

DONE, NOT_ON_SERVER, GAVE_UP = 0, 3, 4


def log(text: str) -> None:
    """A line for logs/wandb.log."""
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}", flush=True)


def exit_now(code: int) -> NoReturn:
    """Ends at once, with wandb's processes: its exit handlers could wait for a dead server."""
    _kill_wandb()
    os._exit(code)


def _kill_wandb() -> None:
    for child in descendants(os.getpid()):
        kill_tree(child)


class TrainerProcess(threading.Thread):
    """Waits for the end of the training process, then ends this one within a limited time."""

    def __init__(self, pid: int, abandon_after: float) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.exit_code = 1  # unless it says otherwise, it died
        self.reading = threading.Lock()
        """Held while the exit code is taken from standard input."""
        self._abandon_after = abandon_after
        self._pid = pid

    def run(self) -> None:
        """Waits for the exit code on standard input, or for the trainer to be gone; then ends all in time."""
        # The pipe alone does not tell: workers that the trainer forked may hold it open after its death.
        while not (spoke := select.select([0], [], [], POLL_SECONDS)[0]) and os.getppid() == self._pid:
            pass
        with self.reading:
            if spoke:
                with suppress(ValueError):
                    self.exit_code = int(os.read(0, 64))
            self.ended.set()
        time.sleep(self._abandon_after)
        log("W&B did not finish in time")
        exit_now(NOT_ON_SERVER)


class Sidecar:
    """One start of wandb.

    start: counted from 0, of those that the trainer that runs now has seen. news: offsets in the files of the
    record from which on what happens is worth an alert.
    """

    def __init__(self, run_dir: Path, start: int = 0, news: Mapping[str, int] | None = None) -> None:
        self._run_dir, self._start, self._began = run_dir, start, time.monotonic()
        self._session: dict[str, Any] = json.loads((run_dir / "wandb" / "session.json").read_text())
        self._news = self._session["first_news"] if news is None else news
        self._timeouts = self._session["timeouts"]
        self._trainer = TrainerProcess(self._session["trainer"], self._timeouts["abandon"])

    def run(self) -> int:
        """Mirrors the run until its trainer ends; returns the exit code."""
        self._trainer.start()
        lock = open(self._run_dir / "wandb" / "lock", "ab")  # noqa: SIM115 (held until the process ends)
        if not wait_for_lock(lock, self._waits):
            log("the mirror of an earlier start still holds this run")
            return NOT_ON_SERVER
        session, feed = self._session, None
        try:
            opened = open_run(self._run_dir, session, log)
            log(f"mirroring {opened.mode}, run id {session['run_id']}, restart {session['restarts']}")
            feed = Feed(
                self._run_dir, opened.journal, Redactor(os.environ), log,
                alert=session["alerts"], first_news=self._news,
            )  # fmt: skip
            self._follow(opened.run, feed, online=opened.mode == session["mode"])
            done = hand_over(self._run_dir, session, opened, feed, self._trainer.exit_code, log)
        except Exception as error:
            log(f"{type(error).__name__}: {error}")
            lasted = time.monotonic() - self._began > STEADY_SECONDS
            self._begin_anew(feed, 0 if lasted else self._start + 1, self._pause())
            log("stopped mirroring")
            return GAVE_UP
        log("finished" if done else "not finished")
        return DONE if done and opened.mode == session["mode"] else NOT_ON_SERVER

    def _waits(self, seconds: float) -> bool:
        """Waits for the mirror of an earlier start; returns whether to wait no longer."""
        self._end_if_superseded()
        return self._trainer.ended.wait(seconds)

    def _follow(self, run: Any, feed: Feed, online: bool) -> None:
        """Passes on what is new until the trainer has ended. Raises what wandb raises again and again."""
        errors, retry_at = 0, time.monotonic() + self._pause(10.0)
        while True:
            self._end_if_superseded()
            last_round = self._trainer.ended.wait(POLL_SECONDS)
            try:
                feed.pass_on(run)
                errors = 0
            except Exception as error:
                errors += 1
                log(f"a row was not taken ({type(error).__name__}: {error})")
                if errors == MAX_ERRORS:
                    raise
                continue
            if last_round:
                return
            if not online and time.monotonic() > retry_at:
                retry_at = time.monotonic() + self._pause(10.0)
                if is_reachable(self._session["server"], self._timeouts["probe"]):
                    log("the server answers now")
                    self._begin_anew(feed, self._start + 1, 0.0)

    def _end_if_superseded(self) -> None:
        """Ends this process where a later start of the run has a mirror of its own.

        Its trainer has lost the run, and may be stopped, so that it says nothing.
        """
        with suppress(OSError, ValueError):  # it is being replaced, or cannot be read now
            if read_session(self._run_dir).get("restarts") != self._session["restarts"]:
                log("a later start of this run has taken over")
                exit_now(NOT_ON_SERVER)

    def _pause(self, times: float = 1.0) -> float:
        """Seconds until the next start of wandb."""
        return float(times * self._timeouts["again"] * 2**self._start)

    def _begin_anew(self, feed: Feed | None, start: int, pause: float) -> None:
        """Becomes a new process in the place of this one; returns where there is no time or use for that."""
        if start >= MAX_STARTS or self._trainer.ended.wait(pause):
            return
        log("beginning anew")
        with self._trainer.reading:
            if self._trainer.ended.is_set():
                return
            _kill_wandb()
            os.environ.pop("WANDB_SERVICE", None)  # where wandb has noted its process, which has gone
            state = json.dumps({"start": start, "news": dict(feed.news if feed else self._news)})
            command = [sys.executable, "-P", "-m", __spec__.name, str(self._run_dir), state]
            os.execv(sys.executable, command)


def wait_for_lock(lock: Any, gives_up: Callable[[float], bool]) -> bool:
    """Waits until the mirror of an earlier start has ended; returns whether it has.

    gives_up: waits so many seconds, and returns whether to wait no longer.
    """
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if gives_up(POLL_SECONDS / 4):
                return False
        except OSError:
            return True  # a file system without locks


def main() -> None:
    """Mirrors the run in the folder that the command line names, then ends at once."""
    code = GAVE_UP
    try:
        state = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
        code = Sidecar(Path(sys.argv[1]), **state).run()
    except Exception as error:
        log(f"no mirror: {type(error).__name__}: {error}")
    exit_now(code)


if __name__ == "__main__":
    main()
