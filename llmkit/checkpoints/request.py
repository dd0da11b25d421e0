"""`llmkit checkpoint save`: asks a run that is under way to save, on whatever host it is.

The request is the file `SAVE` in its run folder. The run removes it when the checkpoint is there.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from llmkit.checkpoint.read import folders
from llmkit.command_line import print_json, to_stderr
from llmkit.errors import RunFault, UserError
from llmkit.files import write_atomic
from llmkit.monitor.jsonlines import Row
from llmkit.monitor.record import read_run
from llmkit.run_folder import SAVE

POLL_SECONDS = 0.5
ENDED = ("done", "stopped", "failed")


def save_command(run: Path, wait: float, *, as_json: bool = False) -> int:
    """Asks for a checkpoint, and prints its folder when it is there.

    wait: seconds. as_json: an object tells it, and whether it is newer than the request.

    Raises UserError where the run is not under way, RunFault where it cannot save, ends
    without it, or does not do so in time; the request is then taken back.
    """
    record = read_run(run)
    if record.state.name in ENDED:
        raise UserError(f"save: the run {run} is not under way, it {record.state.reason}; {_newest(run)}")
    request, before = run / SAVE, len(record.events)
    if not os.path.lexists(request):  # else somebody else's serves as well
        try:
            with write_atomic(request) as file:
                who = f"process {os.getpid()} on {socket.gethostname()}"
                file.write(f"{who} asks for a checkpoint\n".encode())
        except OSError as error:
            raise UserError(f"save: {request} cannot be written: {error.strerror or error}") from error
    to_stderr(f"asked {run} to save; it does so after the step that it is in")
    try:
        return _wait(run, request, before, time.monotonic() + wait, as_json)
    except BaseException:
        with suppress(OSError):
            request.unlink(missing_ok=True)
        raise


def _wait(run: Path, request: Path, before: int, until: float, as_json: bool) -> int:
    """Waits for the answer of a run. before: events that it had recorded when it was asked."""
    while True:
        taken = not os.path.lexists(request)
        record = read_run(run)
        since = record.events[before:]
        ended = record.state.name in ENDED
        if (taken or ended) and (saved := [row for row in since if row.get("event") == "save"]):
            return _done(run, saved[-1], as_json)
        if taken and not ended:  # there was nothing new to save
            if as_json:
                found = folders(run / "checkpoints")
                print_json({"path": str(found[-1]) if found else None, "saved": False})
            else:
                print(_newest(run))
            return 0
        if failed := [row for row in since if row.get("event") == "save_failed"]:
            reason = failed[-1].get("reason", "it says no reason")
            raise RunFault(f"save: the run {run} cannot save: {reason}")
        if ended:
            raise RunFault(f"save: the run {run} {record.state.reason} before it has saved; {_newest(run)}")
        if time.monotonic() > until:
            raise RunFault(
                f"save: the run {run} has not saved in time; it {record.state.reason}; see what it does with "
                f"llmkit top {run}, or wait longer with --wait"
            )
        time.sleep(POLL_SECONDS)


def _done(run: Path, saved: Row, as_json: bool) -> int:
    path = run / "checkpoints" / str(saved.get("path"))
    if as_json:
        print_json({"path": str(path), "saved": True})
    else:
        print(path)
    return 0


def _newest(run: Path) -> str:
    """The newest checkpoint of a run, in words."""
    found = folders(run / "checkpoints")
    return f"its newest checkpoint is {found[-1]}" if found else "it has no checkpoint"
