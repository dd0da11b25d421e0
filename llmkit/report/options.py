"""The command line of `llmkit report`; imported by every command, so nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from llmkit.command_line import Commands


def add_report_command(commands: Commands) -> None:
    """Adds `llmkit report`."""
    parser = commands.add_parser("report", help="write a page on a run, or on several beside each other")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run folder, under way or ended")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PAGE.html",
        help="the page to write; default: report.html in the run folder",
    )
    parser.set_defaults(command=_report, parser=parser)


def _report(options: argparse.Namespace, started: float) -> int:
    from llmkit.report.command import report_command

    return report_command(options.runs, options.output)
