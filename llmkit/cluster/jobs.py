"""`llmkit jobs`: the user's llmkit jobs in the queue, each with its run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from llmkit.cluster.accounting import ended_jobs
from llmkit.cluster.queue import ENDED, SlurmJob, running_first, user_jobs
from llmkit.cluster.words import state_in_words, why_waiting
from llmkit.command_line import print_json
from llmkit.config.mistakes import printable
from llmkit.errors import UserError
from llmkit.monitor.event_text import event_text
from llmkit.monitor.record import RunRecord
from llmkit.monitor.terminal import Painter, size_of, takes_live_view
from llmkit.monitor.text import thousands
from llmkit.slurm import require_slurm
from llmkit.watch.runs import STYLES, RunLine, read_line, steps_text
from llmkit.watch.table import Column, draw


@dataclass(frozen=True)
class JobLine:
    """A job in the table. run: what its folder tells, None where there is none yet.

    what: why it waits, what happened last, or how its run has ended.
    """

    job: SlurmJob
    state: str
    what: str
    run: RunLine | None = None


def jobs_command(options: argparse.Namespace) -> int:
    """Prints the table, or JSON. Raises UserError where there is no SLURM, RunFault where it is silent."""
    require_slurm("jobs", "squeue")
    now = datetime.now().astimezone()
    queued = user_jobs()
    ended = ended_jobs({job.job_id for job in queued})
    lines = [job_line(job, now) for job in running_first([*queued, *ended])]
    if options.json:
        print_json([as_json(line) for line in lines])
    elif not lines:
        print("you have no llmkit jobs in the queue", file=sys.stderr)
    else:
        width = size_of(sys.stdout)[0] if sys.stdout.isatty() else None
        print("\n".join(draw(columns(lines), styles(lines), width, Painter(takes_live_view(sys.stdout)))))
    return 0


def job_line(job: SlurmJob, now: datetime) -> JobLine:
    """A job with what its run folder tells. Nothing in that is written."""
    line = JobLine(job, state_in_words(job), why_waiting(job, now))
    if job.run is None or not job.run.is_dir():
        begun = {"RUNNING": "is starting", "FAILED": "ended before its run began; its log says why"}
        return replace(line, what=begun.get(job.state, line.what))
    try:
        run = read_line(job.run, Path.cwd(), now.timestamp())
    except UserError as error:
        return replace(line, what=line.what or printable(str(error)))
    events = RunRecord(job.run).events
    if job.state == "PENDING":
        what = line.what + (f"; before: {run.reason}" if job.restarts else "")
    elif job.state not in ENDED:
        what = event_text(events[-1]) if events else "is starting"
    else:
        what = run.reason
    return replace(line, run=run, what=what)


def as_json(line: JobLine) -> dict[str, Any]:
    """For programs."""
    job = asdict(line.job) | {"run": None if line.job.run is None else str(line.job.run)}
    run = None if line.run is None else asdict(line.run)
    return {"job": job, "state": line.state, "what": line.what, "run": run}


def columns(lines: Sequence[JobLine]) -> list[Column]:
    """Headings, and the texts below each."""
    jobs, runs = [line.job for line in lines], [line.run for line in lines]
    return [
        Column("job", [job.number for job in jobs], left=True),
        Column("state", [line.state for line in lines], left=True, styled=True),
        Column("run", [_run_name(line) for line in lines], left=True, shortest=12),
        Column("step", ["" if run is None else steps_text(run) for run in runs]),
        Column("loss", ["" if run is None or run.loss is None else f"{run.loss:.4f}" for run in runs]),
        Column("tokens/s", [_speed(run) for run in runs]),
        Column("nodes", [f"{job.nodes} {job.hosts}".rstrip() for job in jobs], left=True, shortest=6),
        Column("left", [_left(job) for job in jobs]),
        Column("restarts", [str(job.restarts or "") for job in jobs]),
        Column("", [line.what for line in lines], left=True, shortest=20),
    ]


def _left(job: SlurmJob) -> str:
    """What a job has left of its time limit; of one that has ended SLURM goes on to tell it."""
    return "" if job.state in ENDED or job.left in ("INVALID", "NOT_SET") else job.left


def _speed(run: RunLine | None) -> str:
    return "" if run is None or run.speed is None else thousands(run.speed)


def _run_name(line: JobLine) -> str:
    if line.run is not None:
        return line.run.name
    return line.job.name if line.job.run is None else line.job.run.name


def styles(lines: Sequence[JobLine]) -> list[str]:
    """The colour of each state."""
    return [STYLES.get(line.state, "yellow" if line.state == "waiting" else "red") for line in lines]
