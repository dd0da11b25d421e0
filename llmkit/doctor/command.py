"""`llmkit doctor`: of this machine, of one node of a job, of all of them."""

from __future__ import annotations

import argparse
import dataclasses
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llmkit.command_line import print_json, show
from llmkit.config.redaction import Redactor
from llmkit.doctor.checks import CHECKS
from llmkit.doctor.cluster import reports_of_all
from llmkit.doctor.compare import compare, sick_nodes
from llmkit.doctor.findings import Report
from llmkit.doctor.meeting import follow
from llmkit.doctor.node import compared, meeting_of, read_reports, write_report
from llmkit.doctor.participant import Participant
from llmkit.doctor.problem_report import check_run_folder, problem_report
from llmkit.doctor.scope import Scope, folder_of_runs
from llmkit.doctor.step import Step, step_of
from llmkit.doctor.supervise import run_checks
from llmkit.doctor.table import machine_lines, node_lines
from llmkit.end_file import own_host
from llmkit.errors import UserError
from llmkit.slurm import hostnames

SECONDS, WITHIN_A_JOB = 60.0, 25.0
"""For all checks of a node; where a job waits for them."""


def doctor_command(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints, or with --node writes, what was found; returns the exit code, 1 where something failed."""
    with _ended_in_order():
        return _command(options, environment)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM, as of a job that ends, ends what was started too, by way of SystemExit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _command(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    for wanted, of in (("into", "node"), ("nodes", "table")):
        if getattr(options, wanted) and not getattr(options, of):
            raise UserError(f"doctor: --{wanted} goes with --{of}")
    if options.node and not options.into:
        raise UserError("doctor: --node needs --into FOLDER, which all nodes share")
    if options.node and options.json:
        raise UserError("doctor: --node writes what it finds --into a folder; it goes without --json")
    if options.report is not None and (options.node or options.table or options.json):
        raise UserError("doctor: --report is a page of this machine: without --node, --table, --json")
    if options.report:
        check_run_folder(Path(options.report))  # before the checks, which take up to a minute
    if options.table:
        folder = Path(options.table)
        names = hostnames(environment.get("SLURM_JOB_NODELIST", "")) if options.nodes else ()
        reports = read_reports(folder, options.nodes, names)
        return _nodes(compared(reports, meeting_of(str(folder.absolute()))), options.json)
    if int(environment.get("SLURM_LOCALID") or 0) > 0 and "SLURM_STEP_NUM_TASKS" in environment:
        return 0  # the first task of a node speaks for it
    step = None if options.node else step_of(environment)
    if options.node:
        meeting = meeting_of(str(Path(options.into).absolute()))
    else:
        meeting = meeting_of(step.name) if step is not None else ""
    scope = Scope(
        folder_of_runs(options.run_folder), options.expect_gpus, options.config or "", meeting, options.full,
        step.nodes[0] if step is not None else "",
        options.seconds or (WITHIN_A_JOB if options.node else SECONDS),
    )  # fmt: skip
    if step is not None:
        return _cluster(step, scope, options.json, environment)
    report = _report(scope, environment)
    if options.node:
        write_report(Path(options.into), report)
        return 0
    (report,) = compare([report])  # its GPUs with each other
    if options.report is not None:
        run = Path(options.report) if options.report else None
        print("\n".join(problem_report(report, run, environment)))
    elif options.json:
        print_json(report.to_json())
    else:
        for line in machine_lines(report):
            show(line)
    return int(report.state == "fail")


def _report(scope: Scope, environment: Mapping[str, str]) -> Report:
    names = [name for name in CHECKS if scope.meeting or name != "shared folder"]
    return redacted(Report(own_host(environment), tuple(run_checks(names, scope))), environment)


def _cluster(step: Step, scope: Scope, as_json: bool, environment: Mapping[str, str]) -> int:
    """One node of a step; the first one prints, and its exit code is that of all."""
    own = Participant(step.nodes[step.index], lambda: _report(scope, environment), scope.seconds)
    try:
        if step.index:
            follow(step, own)
            return 0
        return _nodes(compared(reports_of_all(step, own, scope), scope.meeting), as_json)
    finally:
        own.close()


def _nodes(reports: list[Report], as_json: bool) -> int:
    if as_json:
        content = {"nodes": [report.to_json() for report in reports], "sick": sick_nodes(reports)}
        print_json(content)
    else:
        print("\n".join(node_lines(reports)))
    return int(any(report.state == "fail" for report in reports))


def redacted(report: Report, environment: Mapping[str, str]) -> Report:
    """Without what gives access: this is shown, and sent to other nodes."""
    redactor = Redactor(environment)
    return Report(
        report.node,
        tuple(
            dataclasses.replace(each, value=redactor.text(each.value), advice=redactor.text(each.advice))
            for each in report.findings
        ),
    )
