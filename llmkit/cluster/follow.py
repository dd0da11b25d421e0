"""`llmkit submit --follow`: the log of a job, until the job ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from llmkit.cluster.queue import ENDED, job_facts, log_of
from llmkit.cluster.words import waiting_text
from llmkit.command_line import to_stderr
from llmkit.errors import RunFault

LOG_SECONDS = 1.0
STATE_SECONDS = 10.0
"""How often SLURM is asked, which many do at the same time."""
BLOCK = 1 << 16
GONE = "gone"
"""The state of a job that SLURM does not know any more."""


def follow_job(
    number: str,
    state_seconds: float = STATE_SECONDS,
    show: Callable[[bytes], object] | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Shows a job's log from its begin until the job ends; returns its exit code. Ctrl-C leaves it alone.

    A file of a network is opened for each reading, or what another machine writes would come late.
    """
    try:
        return _follow(number, state_seconds, show or _to_stdout, sleep)
    except KeyboardInterrupt:
        to_stderr(f"job {number} goes on; `llmkit jobs` shows it, `scancel {number}` ends it")
        return 0


def _follow(
    number: str, state_seconds: float, show: Callable[[bytes], object], sleep: Callable[[float], object]
) -> int:
    offset, told, facts = 0, "", dict[str, str]()
    next_look = 0.0
    while True:
        ended = False
        if time.monotonic() >= next_look:
            facts, why = _look(number, facts)
            next_look = time.monotonic() + state_seconds
            if why and why != told:
                to_stderr(f"job {number}: {why}")
            told = why
            ended = facts.get("JobState") in (*ENDED, GONE)
        offset = _show_new(Path(log_of(facts)), offset, show)
        if ended:
            state, code = facts.get("JobState", GONE), facts.get("ExitCode", "")
            end = _exit_code(state, code)
            to_stderr(f"job {number}: {state.lower().replace('_', ' ')}, exit code {end}")
            return end
        sleep(LOG_SECONDS)


def _look(number: str, before: dict[str, str]) -> tuple[dict[str, str], str]:
    """What SLURM says of a job, and why it waits; the facts of `before` while SLURM does not answer."""
    try:
        facts = job_facts(number) or {**before, "JobState": GONE}
    except RunFault as error:  # as where its controller is started again
        return before, f"{error}; asked again every {STATE_SECONDS:.0f} s"
    why = waiting_text(facts, datetime.now().astimezone())
    return facts, why and f"waits: {why}"


def _exit_code(state: str, code: str) -> int:
    """That of the batch script, from SLURM's "code:signal"; 1 where the job failed without one."""
    number = code.partition(":")[0]
    own = int(number) if number.isdecimal() and len(number) < 4 else 0
    return own or (0 if state == "COMPLETED" else 1)


def _show_new(log: Path, offset: int, show: Callable[[bytes], object]) -> int:
    """Shows what a log has from `offset` on; returns where it ends now."""
    try:
        with open(log, "rb", buffering=0) as file:
            while block := os.pread(file.fileno(), BLOCK, offset):
                show(block)
                offset += len(block)
    except OSError:
        pass  # not yet there, or not there for the moment
    return offset


def _to_stdout(block: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()
