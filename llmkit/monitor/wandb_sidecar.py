"""The process that mirrors metrics.jsonl to Weights & Biases; it alone imports wandb.

It ends when the trainer writes its exit code to standard input, or is gone. On a run that has ended,
`echo 0 | python -m llmkit.monitor.wandb_sidecar RUN_DIR` sends the rows that were missed.
Exit codes: 0 all rows are where they belong; 3 rows are on this disk but not on the server; 4 gave up.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkit.files import write_json
from llmkit.monitor.jsonlines import Row, parse
from llmkit.monitor.wandb_mirror import descendants, kill_tree
from llmkit.monitor.wandb_mode import Mode

POLL_SECONDS = 1.0
FLUSH_SECONDS = 1.0  # how long wandb may keep rows before they are on the disk
SAFE_SECONDS = 3.0  # a row this old has been flushed for certain
MAX_ERRORS = 3  # in a row, before mirroring stops
STOPPED_EARLY = 75

DONE, NOT_ON_SERVER, GAVE_UP = 0, 3, 4


def log(text: str) -> None:
    """A line for logs/wandb.log."""
    print(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text}", flush=True)


def exit_now(code: int) -> None:
    """Ends at once, with wandb's processes: its exit handlers could wait for a dead server."""
    for child in descendants(os.getpid()):
        kill_tree(child)
    os._exit(code)


class TrainerProcess(threading.Thread):
    """Waits for the end of the training process, then ends this one within a limited time."""

    def __init__(self, pid: int, abandon_after: float) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.exit_code = 1  # unless it says otherwise, it died
        self._abandon_after = abandon_after
        self._pid = pid

    def run(self) -> None:
        """Waits for the exit code on standard input, or for the trainer to be gone; then ends all in time."""
        # The pipe alone does not tell: workers that the trainer forked may hold it open after its death.
        while not (spoke := select.select([0], [], [], POLL_SECONDS)[0]) and os.getppid() == self._pid:
            pass
        if spoke:
            with suppress(ValueError):
                self.exit_code = int(os.read(0, 64))
        self.ended.set()
        time.sleep(self._abandon_after)
        log("W&B did not finish in time")
        exit_now(NOT_ON_SERVER)


class Tail:
    """The rows of metrics.jsonl that were not mirrored yet.

    How far they were is kept in wandb/mirror.json, only once they are safe: after a kill a few rows
    may be sent twice, none is lost.
    """

    def __init__(self, run_dir: Path, session: dict[str, Any]) -> None:
        self._path = run_dir / "metrics.jsonl"
        self._state = run_dir / "wandb" / "mirror.json"
        self._session = session["restarts"]
        self._file: Any = None
        self._unsafe: deque[tuple[float, int]] = deque()
        self._offset = self._recall(session["mirrored_at_most"])

    def rows(self) -> list[tuple[Row, int]]:
        """The new rows, each with the offset in the file at which it ends."""
        if self._file is None:
            try:
                # Kept open: the next trainer replaces the file where it drops rows.
                self._file = open(self._path, "rb")  # noqa: SIM115
            except FileNotFoundError:
                return []
        self._file.seek(self._offset)
        found, end = [], self._offset
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            if (row := parse(line)) is not None:
                found.append((row, end))
        return found

    def passed_on(self, end: int) -> None:
        """Notes that the row which ends at offset `end` was given to wandb."""
        self._offset = end
        self._unsafe.append((time.monotonic(), end))

    def remember(self, all_safe: bool = False) -> None:
        """Writes down how far the rows are safe."""
        before, safe = time.monotonic() - SAFE_SECONDS, None
        while self._unsafe and (all_safe or self._unsafe[0][0] < before):
            safe = self._unsafe.popleft()[1]
        if safe is not None:
            self._save(safe)

    def _recall(self, at_most: int) -> int:
        try:
            known = json.loads(self._state.read_text())
            offset, session = int(known["offset"]), known["session"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        if session != self._session:
            offset = min(offset, at_most)
            self._save(offset)
        return offset

    def _save(self, offset: int) -> None:
        with suppress(OSError):  # a full disk: the rows will be sent once more
            write_json(self._state, {"offset": offset, "session": self._session})


def is_reachable(server: str, timeout: float) -> bool:
    """Whether the server is alive; a doubtful answer counts as yes, as wandb will look again."""
    try:
        urllib.request.urlopen(server, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # wandb may know other certificates
    except (OSError, ValueError):
        return False
    return True


def open_run(run_dir: Path, session: dict[str, Any]) -> tuple[Any, Mode]:
    """Starts the W&B run, offline where the server does not take it: (run, its mode)."""
    mode: Mode = session["mode"]
    timeouts = session["timeouts"]
    if mode == "online" and not is_reachable(session["server"], timeouts["probe"]):
        log(f"{session['server']} does not answer: offline")
        mode = "offline"
    if mode == "online":
        try:
            return init(run_dir, session, mode), mode
        except Exception as error:
            log(f"W&B does not take the run ({type(error).__name__}: {error}): offline")
            tear_down()  # without it the id counts as in use
            mode = "offline"
    return init(run_dir, session, mode), mode


def init(run_dir: Path, session: dict[str, Any], mode: Mode) -> Any:
    """One attempt to start the W&B run; raises whatever wandb raises."""
    import wandb

    timeouts, online = session["timeouts"], mode == "online"
    run = wandb.init(
        dir=str(run_dir),
        project=session["project"],
        entity=session["entity"],
        name=session["name"],
        id=session["run_id"],
        resume="allow",
        config=session["config"],
        mode=mode,
        settings=wandb.Settings(
            # They are for the server: what this machine does alone ends in any case, however busy it is.
            init_timeout=timeouts["init"] if online else timeouts["abandon"],
            finish_timeout=timeouts["finish"] if online else timeouts["abandon"],
            finish_timeout_raises=True,
            x_transaction_log_flush_interval=FLUSH_SECONDS,
            x_stats_pid=session["trainer"],
            console="off",
            silent=True,
            # Command lines, git remotes and package lists may hold secrets.
            save_code=False,
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_save_requirements=False,
        ),
    )
    run.define_metric("train/step")
    run.define_metric("*", step_metric="train/step")
    return run


def tear_down() -> None:
    """Waits until wandb-core has ended."""
    import wandb

    wandb.teardown()


def chart_values(row: Row, restarts: int) -> dict[str, float]:
    """The numbers of a row under the names they have on the W&B page."""
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float))}
    values: dict[str, float] = {"train/step": numbers.pop("step", 0), "restarts": restarts}
    for name, value in numbers.items():
        values[f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"] = value
    return values


def follow(run: Any, tail: Tail, trainer: TrainerProcess, restarts: int) -> bool:
    """Passes rows on until the trainer has ended; returns whether wandb accepted them all."""
    errors = 0
    while True:
        last_round = trainer.ended.wait(POLL_SECONDS)
        try:
            for row, end in tail.rows():
                run.log(chart_values(row, restarts))
                tail.passed_on(end)
                errors = 0
            tail.remember()
        except Exception as error:
            errors += 1
            log(f"a row was not taken ({type(error).__name__}: {error})")
            if errors == MAX_ERRORS:
                return False
            time.sleep(POLL_SECONDS)
            continue
        if last_round:
            return True


def mirror(run_dir: Path) -> int:
    """Mirrors a run until its trainer ends; returns the exit code."""
    session = json.loads((run_dir / "wandb" / "session.json").read_text())
    trainer = TrainerProcess(session["trainer"], session["timeouts"]["abandon"])
    trainer.start()
    lock = open(run_dir / "wandb" / "lock", "ab")  # noqa: SIM115 (held until the process ends)
    if not wait_for_lock(lock, trainer):
        log("the mirror of an earlier start still holds this run")
        return NOT_ON_SERVER
    tail = Tail(run_dir, session)
    run, mode = open_run(run_dir, session)
    log(f"mirroring {mode}, run id {session['run_id']}, restart {session['restarts']}")
    if not follow(run, tail, trainer, session["restarts"]):
        log("stopped mirroring")
        return GAVE_UP
    if trainer.exit_code == STOPPED_EARLY:
        run.mark_preempting()
    try:
        run.finish(exit_code=trainer.exit_code)
    except TimeoutError:
        tail.remember()
        log("the server did not take the last rows in time; they are on this disk")
        return NOT_ON_SERVER
    tear_down()  # finish() may return before wandb-core has written the last rows to the disk
    tail.remember(all_safe=True)
    log("finished")
    return DONE if mode == session["mode"] else NOT_ON_SERVER


def wait_for_lock(lock: Any, trainer: TrainerProcess) -> bool:
    """Waits until the mirror of an earlier start has ended, unless the trainer ends before that."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if trainer.ended.wait(POLL_SECONDS / 4):
                return False
        except OSError:
            return True  # a file system without locks


def main() -> None:
    """Mirrors the run in the folder that the command line names, then ends at once."""
    code = GAVE_UP
    try:
        code = mirror(Path(sys.argv[1]))
    except Exception as error:
        log(f"no mirror: {type(error).__name__}: {error}")
    exit_now(code)


if __name__ == "__main__":
    main()
