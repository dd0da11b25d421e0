"""The user's llmkit jobs, as SLURM tells of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkit.cluster.fields import unfit_for_scripts
from llmkit.config.mistakes import printable
from llmkit.errors import RunFault
from llmkit.slurm import Answer, ask

COMMENT = "llmkit"
"""Begins the comment of a job of ours; the run folder follows."""
SCRIPT = "train.sbatch"
ENDED = (
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
    "REVOKED", "TIMEOUT",
)  # fmt: skip
"""States of jobs that have ended; of the others newer versions have more."""
BETWEEN = "\x1f"
"""Separates the fields of a job: no name, folder or comment of a job of ours has it."""
_FIELDS = ("%i", "%A", "%T", "%r", "%D", "%N", "%M", "%L", "%S", "%E", "%j", "%o", "%k")


@dataclass(frozen=True)
class SlurmJob:
    """A job, or a task of an array.

    number: as SLURM shows it: 12, 12_3, or 12_[4-9] for tasks that wait. job_id: its own. state, reason: in
    SLURM's words. nodes: how many. hosts: their names, as SLURM writes them, "" while it waits. used, left:
    of its time limit, as "1-02:03:04". starts: as "2026-11-29T14:00:00", when it did or probably will, "N/A"
    where nobody knows. restarts: how often it went back into the queue. run: its run folder, if known.
    """

    number: str
    job_id: str
    state: str
    reason: str
    nodes: int
    hosts: str
    used: str
    left: str
    starts: str
    dependency: str
    name: str
    restarts: int
    run: Path | None


def comment_of(run: str) -> str:
    """The comment of a job by which `llmkit jobs` knows it, and its run if that can be said on a line."""
    text = f"{COMMENT} {os.path.abspath(run)}"
    return COMMENT if unfit_for_scripts(text) else text


def run_of(comment: str) -> Path | None:
    """The run folder that the comment of a job names; None if it does not, or is none of ours."""
    ours, _, run = comment.partition(" ")
    return Path(run) if ours == COMMENT and run else None


def user_jobs() -> list[SlurmJob]:
    """The jobs of this user that are ours, also those that have ended in the last minutes.

    Raises RunFault where SLURM does not answer.
    """
    user = f"--user={os.getuid()}"
    form = BETWEEN.join(_FIELDS)
    rows = _output(ask("squeue", "--noheader", "--states=all", user, f"--format={form}"))
    restarts = _output(ask("squeue", "--noheader", "--states=all", user, "--Format=JobID:20,RestartCnt:20"))
    return list(_parsed(rows, dict(_pairs(restarts))))


def _output(answer: Answer) -> str:
    if answer.refusal:
        raise RunFault(f"squeue: {answer.refusal}")
    return answer.output


def _pairs(text: str) -> Iterator[tuple[str, int]]:
    for words in map(str.split, text.splitlines()):
        if len(words) == 2 and words[1].isdecimal():
            yield words[0], int(words[1])


def _parsed(text: str, restarts: dict[str, int]) -> Iterator[SlurmJob]:
    for line in text.split("\n"):
        fields = line.split(BETWEEN)
        if len(fields) != len(_FIELDS):
            continue
        values = [printable(field.strip(), 2000) for field in fields]
        number, job_id, state, reason, nodes, hosts, used, left, starts, dependency = values[:10]
        name, command, comment = values[10:]
        run = run_of(comment)
        if run is None and comment != COMMENT and os.path.basename(command.partition(" ")[0]) != SCRIPT:
            continue
        yield SlurmJob(
            number, job_id, state, reason, int(nodes) if nodes.isdecimal() else 0, hosts, used, left, starts,
            "" if dependency == "(null)" else dependency, name, restarts.get(job_id, 0),
            run,
        )  # fmt: skip


def job_facts(number: str) -> dict[str, str]:
    """What `scontrol show job` says of a job or task; empty where SLURM does not know it any more.

    Raises RunFault where SLURM does not answer.
    """
    answer = ask("scontrol", "show", "job", number)
    if answer.refusal:
        if "invalid job id" in answer.refusal.lower():
            return {}
        raise RunFault(f"scontrol: {answer.refusal}")
    facts: dict[str, str] = {}
    for line in answer.output.split("\n\n")[0].splitlines():
        whole = re.fullmatch(r"\s*(Command|WorkDir|StdErr|StdIn|StdOut|Comment)=(.*?)\s*", line)
        before, _, job_name = line.partition(" JobName=")
        words = [whole.groups()] if whole else re.findall(r"(\w+)=(\S*)", before)
        for name, value in words:
            facts.setdefault(name, value)
        if job_name:
            facts.setdefault("JobName", job_name)
    return facts


def log_of(facts: Mapping[str, str]) -> str:
    """The log of a job, of an array with TASK for the number of a task, from what `job_facts` gives.

    Versions from 24.05 on show the pattern of its name, those before 4294967294 for a task's number.
    """
    number = facts.get("JobId", "")
    array, name = facts.get("ArrayJobId", number), facts.get("JobName", "")
    known = {"%j": number, "%A": array, "%a": facts.get("ArrayTaskId", "TASK"), "%x": name, "%%": "%"}
    if not known["%a"].isdecimal():  # of tasks that wait it is as in "0-3"
        known["%a"] = "TASK"
    log = facts.get("StdOut", "").replace("4294967294", "TASK")
    return re.sub("%[jAax%]", lambda found: known[found[0]], log)


def running_first(jobs: Sequence[SlurmJob]) -> list[SlurmJob]:
    """Those that run, those that wait, those that have ended; of each the oldest first."""
    order = {"RUNNING": 0, "COMPLETING": 0, "CONFIGURING": 1, "PENDING": 1}

    def key(job: SlurmJob) -> tuple[int, int, str]:
        return order.get(job.state, 2), int(re.sub(r"\D.*", "", job.number) or 0), job.number

    return sorted(jobs, key=key)
