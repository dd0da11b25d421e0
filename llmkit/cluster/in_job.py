"""What slurm/train.sbatch leaves to Python: `python -m llmkit.cluster.in_job STATE ACTION ...`.

STATE is the script's folder for this job. Nothing here needs torch, so that it runs on a host whose
training runs in a container. Standard output is for the script; messages go to standard error.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from llmkit.cluster import nodes
from llmkit.cluster.starts import MAX_STARTS, MAX_UNFIT, Ended, Record, Verdict, judge
from llmkit.end_file import End, read_end
from llmkit.ports import PORTS, listen, ports_of
from llmkit.run_folder import DONE

RECORD, RUN, EXCLUDE = "starts.json", "run-folder", "exclude"
"""Files in the folder of a job; of the last one the script makes SLURM's list, once the job is requeued."""
HOLD = 3
"""Exit code of `before` where the job should wait until its user releases it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """One question of the script; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m llmkit.cluster.in_job")
    parser.add_argument("state", type=Path, help="the script's folder for this job")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("before", help="note that a start begins").add_argument("run", type=Path)
    actions.add_parser("port", help="print a free port of this host").add_argument("start", type=int)
    actions.add_parser("exclude", help="leave nodes out of the next start").add_argument("hosts", nargs="+")
    after = actions.add_parser("after", help="print what becomes of the job: ACTION CODE WHY")
    after.add_argument("--code", type=int, required=True, help="of srun")
    after.add_argument("--end-file", type=Path, required=True)
    after.add_argument("--asked", action="store_true", help="the script has asked for a stop")
    options = parser.parse_args(arguments)
    try:
        return _answer(options)
    except OSError as error:  # as of a disk that is full
        say(f"{options.action}: {error} ({options.state}): mend that, then submit the job again to go on")
        return 1


def _answer(options: argparse.Namespace) -> int:
    """Answers the question; returns the exit code. Raises OSError."""
    if options.action == "before":
        return begin(options.state, options.run)
    if options.action == "port":
        print(free_port(int(os.environ["SLURM_JOB_ID"]), options.start))
        return 0
    if options.action == "exclude":
        return exclude(options.state, options.hosts)
    verdict = judge_start(options.state, options.code, options.end_file, options.asked)
    print(verdict.action, verdict.code, verdict.why)
    return 0


def say(text: str) -> None:
    """A line of the job's log."""
    print(f"train.sbatch: {text}", file=sys.stderr, flush=True)


def begin(state: Path, run: Path) -> int:
    """Notes that a start of the run in this folder begins; returns HOLD where the job should wait, else 0."""
    (state / RUN).write_text(str(run))
    record = Record.read(state / RECORD)
    why = record.begin(newest_checkpoint(run), nodes.services(os.environ["SLURM_JOB_NODELIST"]))
    record.write(state / RECORD)
    if not why:
        return 0
    say(why)
    return HOLD


def judge_start(state: Path, code: int, end_file: Path, asked: bool) -> Verdict:
    """What becomes of the job after a start; suspected nodes are left out of the next one."""
    folder = Path((state / RUN).read_text())
    record, end = Record.read(state / RECORD), read_end(end_file)
    if end is None and (folder / DONE).exists():
        end = End("done")
    now = nodes.services(os.environ["SLURM_JOB_NODELIST"])
    ended = Ended(end, code, asked, newest_checkpoint(folder), nodes.lost(record.nodes, now))
    verdict = judge(record, ended, int(os.environ.get("MAX_STARTS") or MAX_STARTS))
    record.write(state / RECORD)
    if verdict.action == "requeue" and end is not None and end.hosts:
        leave_out(state, end.hosts)
    return verdict


def exclude(state: Path, hosts: Sequence[str]) -> int:
    """Leaves nodes out that are not fit for a start, which then ends; returns 1 where that cannot be."""
    record = Record.read(state / RECORD)
    if record.unfit >= MAX_UNFIT:
        count = f"nodes were left out {record.unfit} times in a row"
        say(f"{', '.join(hosts)} may be used again: {count}, so that the cause may be another one")
        return 1
    if not leave_out(state, hosts):
        return 1
    record.ended = True
    record.unfit += 1
    record.write(state / RECORD)
    return 0


def leave_out(state: Path, hosts: Sequence[str]) -> bool:
    """Leaves nodes out of the next start of this job, if that can be; says which, or why not."""
    named = ", ".join(hosts)
    try:
        count = int(os.environ["SLURM_JOB_NUM_NODES"])
        (state / EXCLUDE).write_text(nodes.exclusion(os.environ["JOB"], hosts, count))
    except nodes.CannotLeaveOut as why_not:
        say(f"{named} may be used again: {why_not}")
        return False
    say(f"{named} left out of the next starts")
    return True


def newest_checkpoint(folder: Path) -> int:
    """The step of a run's newest checkpoint, not verified; -1 where there is none."""
    manifests = folder.glob("checkpoints/step-*/manifest.json")
    steps = [re.fullmatch(r"step-(\d{8})", path.parent.name, re.ASCII) for path in manifests]
    return max((int(step[1]) for step in steps if step), default=-1)


def free_port(job: int, start: int) -> int:
    """A port of this host that nobody listens on; another one for each start. Raises OSError: none is."""
    for port in ports_of(job, start):
        try:
            listen(port).close()
        except OSError:
            continue
        return port
    raise OSError(f"no port from {PORTS[0]} to {PORTS[-1]} is free")


if __name__ == "__main__":
    sys.exit(main())
