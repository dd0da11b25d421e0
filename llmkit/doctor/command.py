"""`llmkit doctor`: of this machine, of one node of a job, of all of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from llmkit.doctor.checks import CHECKS
from llmkit.doctor.compare import compare, sick_nodes
from llmkit.doctor.findings import Report
from llmkit.doctor.node import compared_reports, meeting_of, write_report
from llmkit.doctor.scope import Scope, folder_of_runs, node_name
from llmkit.doctor.supervise import LIMIT, run_checks
from llmkit.doctor.table import machine_lines, node_lines
from llmkit.errors import UserError
from llmkit.monitor.redaction import Redactor

ALONE_LIMIT = 120.0
"""Seconds for all checks of a machine, which nobody waits for."""


def doctor_command(options: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Prints, or with --node writes, what was found; returns the exit code, 1 where something failed."""
    for wanted, of in (("into", "node"), ("nodes", "table")):
        if getattr(options, wanted) and not getattr(options, of):
            raise UserError(f"doctor: --{wanted} goes with --{of}")
    if options.table:
        return _nodes(compared_reports(Path(options.table), options.nodes, environment), options.json)
    if options.node and not options.into:
        raise UserError("doctor: --node needs --into FOLDER, which all nodes share")
    scope = Scope(
        folder_of_runs(options.run_folder), options.expect_gpus, options.config or "",
        meeting_of(Path(options.into)) if options.node else "", options.full,
    )  # fmt: skip
    names = [name for name in CHECKS if options.node or name != "shared folder"]
    found = run_checks(names, scope, LIMIT if options.node else ALONE_LIMIT)
    report = redacted(Report(node_name(environment), tuple(found)), environment)
    if options.node:
        write_report(Path(options.into), report)
        return 0
    (report,) = compare([report])  # its GPUs with each other
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print("\n".join(machine_lines(report)))
    return int(report.state == "fail")


def _nodes(reports: list[Report], as_json: bool) -> int:
    if as_json:
        content = {"nodes": [report.to_json() for report in reports], "sick": sick_nodes(reports)}
        print(json.dumps(content, indent=2))
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
