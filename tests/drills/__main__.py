"""Performs the drills and prints what came of them.

    python -m tests.drills                       those of `make test`
    python -m tests.drills --all                 the long ones too
    python -m tests.drills --only D3,D10 --all   some of them
    python -m tests.drills --all --markdown docs/drills.md --json drills.json

Exit code 1 where a drill failed. What cannot be run on this machine, and what no test performs, is in the
table with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.drills.catalogue import DRILLS, drills_of
from tests.drills.table import Outcome, Row, markdown, rows, summary

TESTS = Path(__file__).parents[1]
HEAD = """\
# Drills

Runs are harmed on purpose; what came of it. Made by `python -m tests.drills --markdown docs/drills.md`
on {date} in {minutes:.0f} minutes, at commit {commit}, on {machine}. {summary}.

Two figures are the smallest and the largest of several tests. On one machine without a GPU drills show that
the logic is right, not how NCCL, RDMA or Lustre behave.

"""


class Recorder:
    """Part of pytest: keeps what came of each test that performs a drill."""

    def __init__(self, wanted: Sequence[str]) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._wanted = set(wanted)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        """Leaves only the tests of drills that are wanted; --all is pytest's matter."""
        others = []
        for item in items:
            drills = [drill for drill in drills_of(item) if drill.number in self._wanted]
            if drills:
                self.outcomes[item.nodeid] = Outcome(drills)
            else:
                others.append(item)
        items[:] = [item for item in items if item.nodeid in self.outcomes]
        config.hook.pytest_deselected(items=others)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = self.outcomes[report.nodeid]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            text = report.longreprtext if crash is None else crash.message
            outcome.result, outcome.reason = "failed", f"{report.nodeid}: {text.strip().splitlines()[0]}"
        elif report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
            outcome.result, outcome.reason = "cannot be run here", reason.removeprefix("Skipped: ")
        elif report.when == "call":
            outcome.result = "passed"
        if report.when == "teardown":
            outcome.figures = [value for name, value in report.user_properties if name == "measured"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.drills", description="Performs the drills.")
    parser.add_argument("--all", action="store_true", help="also the long ones, which `make test` leaves out")
    parser.add_argument("--only", metavar="D3,D10", help="some of the drills")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table for the documentation")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table as JSON")
    options = parser.parse_args(arguments)
    wanted = [number for number in (options.only or "").split(",") if number] or list(DRILLS)
    if unknown := set(wanted) - set(DRILLS):
        parser.error(f"no such drill: {', '.join(sorted(unknown))}; there are {', '.join(DRILLS)}")

    recorder, begun = Recorder(wanted), time.monotonic()
    files = [str(file) for file in sorted(TESTS.rglob("test_*.py")) if "mark.drill(" in file.read_text()]
    code = pytest.main([*(["-m", ""] if options.all else []), *files], plugins=[recorder])
    table = rows(recorder.outcomes.values(), wanted)
    minutes = (time.monotonic() - begun) / 60
    show(table)
    print(f"{summary(table)}; {minutes:.1f} minutes")
    if options.markdown:
        options.markdown.write_text(head(table, minutes) + markdown(table))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in table], indent=1) + "\n")
    failed = code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    return int(failed or any(row.result == "failed" for row in table))


def show(table: Sequence[Row]) -> None:
    """Prints the table."""
    drawn = Table("drill", "what was done", "what must come of it", "measured", "result")
    for row in table:
        result = f"{row.result}: {row.reason}" if row.reason else row.result
        drawn.add_row(row.drill, row.injection, row.expected, row.measured, result)
    console = Console(width=None if sys.stdout.isatty() else 180, markup=False)
    console.print(drawn)


def head(table: Sequence[Row], minutes: float) -> str:
    """The first lines of the page: when and where the table was made."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores of {next(iter(names), 'a CPU')} with {memory:.0f} GiB"
    machine += f" (Python {platform.python_version()}, torch {version('torch')})"
    return HEAD.format(
        date=date.today(), machine=machine, commit=_commit(), minutes=minutes, summary=summary(table)
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=TESTS, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
