"""What a verdict leaves behind: stacks and an event in the run folder, the end file, a line on the screen."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from llmkit.errors import RunFault
from llmkit.watchdog.board import Sight
from llmkit.watchdog.diagnosis import Known, Verdict

SECONDS = 3.0
"""How long a file system is waited for: it may be what hangs."""


def in_time(work: Callable[[], None]) -> bool:
    """Does `work`, in a thread that is left alone after SECONDS; whether it was done."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return not thread.is_alive()


def stacks_folder(run: Path, generation: int) -> Path:
    """Where the stacks of a start of the run are saved."""
    return run / "logs" / f"stacks-{generation}"


def save_stack(folder: Path, rank: int, text: str) -> None:
    """Saves what is known of a rank's process as rank-00003.txt."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{rank:05d}.txt").write_text(text, errors="replace")


def record(
    run: Path, generation: int, verdict: Verdict, ranks: Sequence[Known], folder: Path | None
) -> None:
    """Appends the event of a verdict, unless a later start has the run. ranks: what is known of them.

    folder: with the stacks.
    """
    from llmkit.monitor.events import EventLog  # what is here is needed by few watching processes
    from llmkit.ownership.claim import Claim

    try:
        if not Claim(run, generation).is_current():
            return
    except OSError:  # the disk does not take the event either
        return
    first = next((each for each in ranks if each.rank in verdict.ranks), ranks[0])
    events = EventLog(run / "events.jsonl")
    events.record(
        verdict.event, reason=verdict.text, rank=first.rank, ranks=list(verdict.ranks), host=first.host,
        step=first.step, phase=first.phase, seconds=round(verdict.seconds, 1),
        stacks=None if folder is None else str(folder.relative_to(run)),
    )  # fmt: skip
    events.close()


def end(file: str, verdict: Verdict, sight: Sight, hosts: Sequence[str]) -> None:
    """Says in the file that $END_FILE names how this start ends. sight: of a rank of it."""
    from llmkit.end_file import END_FILE, End, write_end

    first, saved = (None if step < 0 else step for step in (sight.first_step, sight.saved_step))
    with suppress(RunFault):
        write_end(End("fault", verdict.text, sight.step, saved, first, hosts), {END_FILE: file})


def say(text: str) -> None:
    """A line on standard error, unless nobody reads it: nothing may wait for that."""
    with suppress(OSError, ValueError):
        _, ready, _ = select.select([], [sys.stderr], [], 0)
        if ready:
            os.write(sys.stderr.fileno(), f"llmkit: {text}\n".encode()[: select.PIPE_BUF])
