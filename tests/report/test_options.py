"""The command line of `llmkit report`."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.command_line import CommandParser
from llmkit.report.options import add_report_command


def test_options():
    parser = CommandParser()
    add_report_command(parser.add_subparsers())
    found = parser.parse_args(["report", "runs/a", "runs/b", "--output", "x.html"])
    assert (found.runs, found.output) == ([Path("runs/a"), Path("runs/b")], Path("x.html"))
    assert parser.parse_args(["report", "runs/a"]).output is None
    with pytest.raises(SystemExit):
        parser.parse_args(["report"])
