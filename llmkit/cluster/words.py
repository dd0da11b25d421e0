"""SLURM's states and reasons in words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime

from llmkit.cluster.queue import SlurmJob
from llmkit.monitor.text import time_of_day

STATES = {
    "PENDING": "waiting", "RUNNING": "running", "CONFIGURING": "starting", "COMPLETING": "ending",
    "COMPLETED": "done", "NODE_FAIL": "node failed", "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time limit", "REQUEUED": "requeued", "REQUEUE_HOLD": "held", "SPECIAL_EXIT": "held",
}  # fmt: skip
"""Others are their own name in small letters."""
REASONS = {
    "None": "SLURM has not looked at it yet",
    "Priority": "others come first",
    "Resources": "waits for free nodes",
    "BeginTime": "waits for its time to begin",
    "Dependency": "waits for {dependency}",
    "DependencyNeverSatisfied": "will never start: {dependency} cannot come true; scancel {number} ends it",
    "JobArrayTaskLimit": "as many tasks of its array run as may at a time",
    "JobHeldUser": "held; free it by scontrol release {number}",
    "JobHeldAdmin": "held by an administrator; ask them why",
    "BadConstraints": "will never start: no nodes fit what it asks for. `scontrol update JobId={number} "
    "ExcNodeList=` gives it those back that were left out",
    "ReqNodeNotAvail": "a node that it asks for is down, drained or reserved",
    "Nodes required for job are DOWN": "waits for nodes that are down",
    "NodeDown": "a node that it asks for is down",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition starts no jobs",
    "PartitionNodeLimit": "will not start: its partition allows fewer nodes",
    "PartitionTimeLimit": "will not start: its partition allows less time",
    "Reservation": "waits for its reservation",
    "Licenses": "waits for a license",
    "Cleaning": "SLURM tidies up after its last start",
    "launch failed requeued held": "could not be started and is held; scontrol release {number} tries again",
    "job requeued in held state": "held after its last start, the end of its log may say why; free it by "
    "scontrol release {number}",
    "user env retrieval failed requeued held": "its node could not read the environment of your login shell, "
    "and it is held; make ~/.bashrc and ~/.profile quicker, then scontrol release {number}",
    "JobHoldMaxRequeue": "requeued more often than the cluster allows; free it by scontrol release {number}",
}
"""Of jobs that wait. Limits of accounts and of qualities of service have names of their own: below."""
_LIMITS = {
    "Assoc": "a limit of the account is reached",
    "QOS": "a limit of the quality of service is reached",
}


def state_in_words(job: SlurmJob) -> str:
    """Such as "waiting"."""
    return STATES.get(job.state, job.state.lower().replace("_", " "))


def why_waiting(job: SlurmJob, now: datetime) -> str:
    """Why a job has not begun, and when SLURM thinks that it will; "" where it has."""
    if job.state != "PENDING":
        return ""
    return _waits(job.reason, job.starts, job.dependency, job.number, now)


def waiting_text(facts: Mapping[str, str], now: datetime) -> str:
    """The same from what `scontrol show job` says."""
    if facts.get("JobState") != "PENDING":
        return ""
    names = ("Reason", "StartTime", "Dependency", "JobId")
    reason, starts, dependency, number = (facts.get(name, "") for name in names)
    return _waits(reason, starts, dependency, number, now)


def _waits(why: str, starts: str, dependency: str, number: str, now: datetime) -> str:
    # A reason may have details behind a comma, as in "ReqNodeNotAvail, UnavailableNodes:n3".
    reason, _, details = why.partition(",")
    text = REASONS.get(reason.replace("_", " "))  # which scontrol writes for spaces
    if text is None:
        text = next((words for begin, words in _LIMITS.items() if reason.startswith(begin)), None)
        text = reason if text is None else f"{text} ({reason})"
    # As in "afterok:12(unfulfilled)".
    after = re.sub(r"\(\w+\)", "", dependency) or "another job"
    text = text.replace("{dependency}", after).replace("{number}", number)
    text += f" ({details.strip()})" if details else ""
    return text + (f"; about {when}" if (when := start_time(starts, now)) else "")


def start_time(text: str, now: datetime) -> str:
    """A time of SLURM's, as `time_of_day` writes it; "" where it is none."""
    try:
        return time_of_day(datetime.fromisoformat(text).replace(tzinfo=now.tzinfo), now)
    except ValueError:
        return ""
