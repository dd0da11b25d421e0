"""The starts of a job so far, and what becomes of the job after one of them.

A job that is put back into the queue starts again, under the same number. Its starts are judged by one
thing: whether the run has a newer checkpoint than before. Starts that end by themselves without one are
counted, and the third in a row ends the job. Where SLURM ended them (preemption, a dead node) the run is not
to blame; but a job that is interrupted again and again before it can save only burns time, so after ten of
those it waits in the queue until its user releases it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from llmkit.end_file import End
from llmkit.files import write_json
from llmkit.stopping import LAUNCHER_GONE

MAX_STARTS = 3
"""Starts in a row that end by themselves without a new checkpoint, after which a job fails."""
MAX_UNFIT = 3
"""Times in a row that nodes are left out as not fit: if those after them are not either, the cause is another
one, such as a broken environment."""
MAX_INTERRUPTIONS = 10
"""Starts in a row that SLURM ends without a new checkpoint, after which a job is held."""
FAULT, STOPPED = 1, 75
"""Exit codes of a job that fails, and of one that its user has stopped."""
SHOWN = 300
"""Characters of a reason that are shown at most."""

Action = Literal["end", "requeue"]


@dataclass
class Record:
    """What is kept from start to start.

    newest: the step of the newest checkpoint that any of them has seen, -1 before the first. fruitless: why
    the last starts ended that made no newer one. interrupted: how many SLURM ended, likewise. ended: whether
    it is known how the last start ended. nodes: those of the last start, and since when SLURM's daemon runs
    on each. unfit: how often in a row nodes were left out before a start.
    """

    newest: int = -1
    fruitless: list[str] = field(default_factory=list)
    interrupted: int = 0
    ended: bool = True
    nodes: dict[str, str] = field(default_factory=dict)
    unfit: int = 0

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record in a file; a new one where there is none, or it cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(**json.loads(path.read_bytes()))
        return cls()

    def write(self, path: Path) -> None:
        """Raises OSError."""
        write_json(path, asdict(self))

    def progress(self, newest: int) -> bool:
        """Notes the newest checkpoint there is now; whether it is newer than all before."""
        if newest <= self.newest:
            return False
        self.newest, self.fruitless, self.interrupted = newest, [], 0
        return True

    def begin(self, newest: int, nodes: Mapping[str, str]) -> str:
        """Notes a start; returns why the job should wait until its user releases it, or nothing."""
        if not self.progress(newest) and not self.ended:
            self.interrupted += 1
        self.ended, self.nodes = False, dict(nodes)
        if self.interrupted < MAX_INTERRUPTIONS:
            return ""
        count, self.interrupted, self.ended = self.interrupted, 0, True
        return (
            f"{count} starts in a row were ended by SLURM (preempted, or a node died) before they could "
            "save: no fault of the run, but no use either. A lower checkpoint.every_minutes, or a partition "
            "with a longer GraceTime, would help"
        )


@dataclass(frozen=True)
class Verdict:
    """What becomes of a job: it ends with `code`, or goes back into the queue."""

    action: Action
    code: int
    why: str


@dataclass(frozen=True)
class Ended:
    """What is seen of a start that has ended.

    end: what the run has written, None if nothing. code: of srun. asked: whether the batch script asked for
    a stop. newest: the step of the newest checkpoint, -1 if there is none. lost: nodes that have died.
    """

    end: End | None
    code: int
    asked: bool
    newest: int
    lost: Sequence[str] = ()


def judge(record: Record, ended: Ended, max_starts: int = MAX_STARTS) -> Verdict:
    """What becomes of a job that SLURM is not ending itself; notes in `record` how its start ended."""
    record.ended, record.unfit = True, 0
    kind = "fault" if ended.end is None else ended.end.end
    reason = _reason(ended)
    if kind == "done":
        return Verdict("end", 0, "done")
    if kind == "mistake":
        return Verdict("end", 2, f"a mistake, which no other start would mend: {reason}")
    if kind == "stopped" and LAUNCHER_GONE in reason:
        kind = "fault"
    if kind == "stopped" and not ended.asked:
        return Verdict("end", STOPPED, f"stopped by {reason}, and saved; submit the job again to go on")
    progress = record.progress(ended.newest)
    if kind == "fault" and ended.lost:
        record.ended = False
        lost = ", ".join(ended.lost)
        return Verdict("requeue", STOPPED, f"died in this start: {lost} (no fault of the run)")
    what = f"{'stopped' if kind == 'stopped' else 'fault'}: {reason}"
    if progress:
        return Verdict("requeue", STOPPED, f"{what}; saved until step {ended.newest}")
    record.fruitless.append(what[:SHOWN])
    count = len(record.fruitless)
    if count < max_starts:
        row = f"start {count} in a row without a new checkpoint, of at most {max_starts}"
        return Verdict("requeue", STOPPED, f"{what}; {row}")
    return Verdict("end", _code(ended), _give_up(record, kind))


def _give_up(record: Record, kind: str) -> str:
    """Why a job ends after so many starts, the last of which ended in this way."""
    remedy = "mend that, then submit the job again"
    if kind == "stopped":
        remedy = (
            "they had no time for a step and a save: ask for a longer --time or build the data before "
            "(llmkit data build), or allow more starts by MAX_STARTS"
        )
    since = "no checkpoint at all" if record.newest < 0 else f"none after that of step {record.newest}"
    reasons = "; ".join(dict.fromkeys(record.fruitless))
    row = f"{len(record.fruitless)} starts in a row saved nothing new ({since}), giving up"
    return f"{row}: {reasons}. {remedy}"


def _reason(ended: Ended) -> str:
    if ended.end is not None:
        return " ".join(ended.end.reason.split())[:SHOWN]
    return f"the processes ended without saying why (exit code {ended.code}); the lines above may tell"


def _code(ended: Ended) -> int:
    return ended.code if 0 < ended.code < 256 and ended.code not in (2, STOPPED) else FAULT
