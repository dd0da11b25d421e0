"""`llmkit submit`: checks a run, asks SLURM whether it takes the job, shows the script, submits it."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from llmkit.cluster.check import CheckedRun, Load, check_runs, single_mistakes
from llmkit.cluster.environment import left_behind
from llmkit.cluster.follow import follow_job
from llmkit.cluster.queue import ENDED, comment_of, job_facts, log_of, user_jobs
from llmkit.cluster.request import Request, read_request
from llmkit.cluster.script import render, shown_part, template
from llmkit.cluster.words import start_time
from llmkit.command_line import print_json, to_stderr, wrong_branch
from llmkit.config.mistakes import printable
from llmkit.config.override import as_utf8
from llmkit.errors import RunFault, UserError
from llmkit.files import may_exist
from llmkit.parallel.accelerate import AccelerateConfig, read_accelerate
from llmkit.parallel.accelerate_file import variables_of
from llmkit.slurm import ask, require_slurm


def submit_command(options: argparse.Namespace, load: Load, environment: Mapping[str, str]) -> int:
    """Submits a job; returns 0, or with --follow the exit code of the job.

    load: reads a configuration with overrides. Raises UserError that names every mistake before SLURM is
    asked, and where SLURM refuses the job; RunFault where SLURM does not answer.
    """
    if options.json and options.follow:
        raise UserError("submit: --json ends with the number of the job; leave --follow out")
    script = template()
    request = read_request(options, script, environment)
    accelerate, unread = _accelerate(options)
    runs, mistakes = check_runs(options.config, options.overrides, request, load, accelerate)
    if mistakes := [*request.mistakes, *unread, *mistakes, *_branch_mistakes(options, runs)]:
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        listed = "".join("\n  " + mistake.replace("\n", "\n  ") for mistake in mistakes)
        raise UserError(f"submit: {count}, nothing was submitted{listed}")
    written = write_script(script, request, runs, [*map(as_utf8, arguments_of(options))])
    for note in _notes(request, runs, environment):
        to_stderr(f"note: {note}")
    if options.dry_run and options.json:
        print_json(_as_json(None, {}, request, runs) | {"script": written})
        return 0
    if options.dry_run:
        sys.stdout.flush()
        sys.stdout.buffer.write(written.encode())  # as it is submitted, whatever encoding the terminal has
        sys.stdout.buffer.flush()
        return 0
    require_slurm("submit", "sbatch")
    if "dependency" not in request.options:
        for note in _same_runs(runs):
            to_stderr(f"note: {note}")
    number = _submit(written, environment, to_stderr if options.json else partial(print, flush=True))
    facts = {}
    with contextlib.suppress(RunFault):  # the job is submitted all the same
        facts = job_facts(number)
    if options.json:
        print_json(_as_json(number, facts, request, runs))
        return 0
    print("\n".join(where_to_look(number, facts, request, runs)), flush=True)
    return follow_job(number) if options.follow else 0


def arguments_of(options: argparse.Namespace) -> list[str]:
    """What `llmkit train` is given in the job: CONFIG, overrides, and what it begins with."""
    branch = {"from": options.branch, "data-position": options.data_position}
    chosen = [f"--{name}={value}" for name, value in branch.items() if value is not None]
    return [options.config, *options.overrides, *chosen]


def _branch_mistakes(options: argparse.Namespace, runs: Sequence[CheckedRun]) -> list[str]:
    """What is wrong with `--from`; of runs that have begun its checkpoint need not be there any more."""
    if (wrong := wrong_branch(options.branch, options.data_position)) is not None:
        return [wrong]
    if options.branch is None:
        return []
    if runs and all(os.path.isdir(os.path.join(run.folder, "checkpoints")) for run in runs):
        return []
    from llmkit.checkpoint.named import named  # imports torch

    try:
        place = named(Path(options.branch))
    except (UserError, RunFault) as error:
        return [f"--from: {error}"]
    there = f"--from: {options.branch}: no such folder; name a run or a checkpoint of it, as RUN@1000"
    return [] if may_exist(place) else [there]


def _accelerate(options: argparse.Namespace) -> tuple[AccelerateConfig | None, list[str]]:
    """Accelerate's configuration, where a file of it is named; and what is wrong with the file."""
    if options.accelerate_config is None:
        return None, []
    try:
        return read_accelerate(variables_of(Path(options.accelerate_config))), []
    except UserError as error:
        return None, single_mistakes(str(error))


def write_script(script: str, request: Request, runs: Sequence[CheckedRun], arguments: Sequence[str]) -> str:
    """The script of the job. script: the template. arguments: CONFIG and overrides."""
    sweep = bool(request.sweep.axes)
    run = os.path.join(os.path.dirname(runs[0].folder), f"{_begin(runs)}*") if sweep else runs[0].folder
    own = {"job-name": _begin(runs).strip("._-")[:64] or "llmkit", "comment": comment_of(run)}
    return render(
        script, {**own, **request.options}, request.removed, request.variables, arguments,
        [run.overrides for run in runs] if sweep else (),
    )  # fmt: skip


def _begin(runs: Sequence[CheckedRun]) -> str:
    """What the names of all runs begin with."""
    first, last = min(run.name for run in runs), max(run.name for run in runs)
    alike = itertools.takewhile(lambda letters: letters[0] == letters[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in alike)


def _notes(request: Request, runs: Sequence[CheckedRun], environment: Mapping[str, str]) -> Iterator[str]:
    yield from dict.fromkeys(remark for run in runs for remark in run.remarks)
    for name in left_behind(environment, request.exports):
        yield (
            f"{name} stays here, since SLURM would keep it: the job finds what `wandb login` and `hf auth "
            f"login` have stored; --pass-env {name} takes it along"
        )


def _same_runs(runs: Sequence[CheckedRun]) -> Iterator[str]:
    """Jobs that have one of these run folders already."""
    folders = {Path(os.path.abspath(run.folder)) for run in runs}
    for job in user_jobs():
        if job.run in folders and job.state not in ENDED:
            yield (
                f"job {job.number} has the run folder {job.run}, too, and only one can train there; "
                f"--dependency afterany:{job.number} lets this job wait for it"
            )


def _submit(script: str, environment: Mapping[str, str], tell: Callable[[str], None]) -> str:
    """Asks SLURM whether it takes a job, tells the script, submits it; returns the number of the job."""
    tried = ask("sbatch", "--test-only", script=script, environment=environment)
    if tried.refusal:
        raise UserError(f"submit: SLURM refuses this job, nothing was submitted: {tried.refusal}")
    tell(f"{shown_part(script)}\n(then slurm/train.sbatch; --dry-run prints all of it)\n")
    answer = ask("sbatch", "--parsable", script=script, environment=environment)
    if answer.refusal:
        raise UserError(f"submit: SLURM refuses this job: {answer.refusal}")
    number = answer.output.strip().partition(";")[0]
    if not number.isdecimal():
        raise RunFault(f"sbatch gave no number of a job, but {answer.output[:200]!r}; look at squeue")
    return number


def _as_json(
    number: str | None, facts: Mapping[str, str], request: Request, runs: Sequence[CheckedRun]
) -> dict[str, Any]:
    """A job for programs. number: None for one that was not submitted. facts: what SLURM tells of it."""
    folders = [os.path.abspath(run.folder) for run in runs]
    log = None if number is None else log_of(facts) or f"slurm-{number}.out"
    return {"job": number, "layout": request.layout, "log": log, "runs": folders}


def where_to_look(
    number: str, facts: Mapping[str, str], request: Request, runs: Sequence[CheckedRun]
) -> Iterator[str]:
    """Lines on a job that was submitted: what it is, and where what it does can be seen.

    facts: what SLURM tells of it, as far as it did.
    """
    first, last = printable(runs[0].folder, 1000), printable(runs[-1].folder, 1000)
    word = shlex.quote(first)  # of commands to be copied
    tasks = f", {len(runs)} tasks" if request.sweep.axes else ""
    when = start_time(facts.get("StartTime", ""), datetime.now().astimezone())
    yield f"job {number}: {request.layout}{tasks}" + (f"; starts about {when}" if when else "")
    yield f"  log         {log_of(facts) or f'slurm-{number}.out'}"
    yield f"  run folder  {first}" + (f" ... {last}" if tasks else "")
    yield f"  watch       llmkit jobs; llmkit top {word}"
    yield f"  end         touch {shlex.quote(f'{first}/STOP')} to save and stop; scancel {number}"
