"""The user's llmkit jobs that have ended, where the cluster keeps accounts of jobs (slurmdbd)."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator

from llmkit.cluster.queue import BETWEEN, SlurmJob, run_of
from llmkit.config.mistakes import printable
from llmkit.errors import RunFault
from llmkit.slurm import ask

SINCE = "now-1days"
FIELDS = ("JobID", "JobIDRaw", "State", "NNodes", "NodeList", "Elapsed", "JobName", "Comment")


def ended_jobs(known: Collection[str]) -> list[SlurmJob]:
    """Those of the last day without the known ones, by their own numbers; none where there are no accounts.

    Accounts keep comments, by which our jobs are known, where AccountingStoreFlags has job_comment.
    """
    if shutil.which("sacct") is None:
        return []
    try:
        answer = ask(
            "sacct", "--noheader", "--allocations", "--parsable2", f"--delimiter={BETWEEN}",
            f"--starttime={SINCE}", f"--format={','.join(FIELDS)}",
        )  # fmt: skip
    except RunFault:
        return []
    return [job for job in _parsed(answer.output) if job.job_id not in known]


def _parsed(text: str) -> Iterator[SlurmJob]:
    for line in text.split("\n"):
        fields = [printable(field.strip(), 2000) for field in line.split(BETWEEN)]
        if len(fields) != len(FIELDS) or (run := run_of(fields[-1])) is None:
            continue
        number, job_id, state, nodes, hosts, used, name, _ = fields
        yield SlurmJob(
            number=number, job_id=job_id, state=state.partition(" ")[0], reason="", hosts=hosts, used=used,
            nodes=int(nodes) if nodes.isdecimal() else 0, left="", starts="", dependency="", name=name,
            restarts=0, run=run,
        )  # fmt: skip
