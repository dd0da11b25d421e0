"""`llmkit report`: a page on what happened in a run, or in several."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from llmkit.errors import UserError
from llmkit.files import write_atomic
from llmkit.monitor.record import RunRecord, read_run
from llmkit.report.page import render

NAME = "report.html"
"""Of the page in a run folder."""
MOST_RUNS = 40
OURS = b'<meta name="generator" content="llmkit report">'
"""Is in the head of every page: such a file may be replaced."""


def report_command(runs: Sequence[Path], output: Path | None) -> int:
    """Writes the page to `output`; by default to report.html, of one run in its folder, of several here.

    A page that was written before is replaced. Raises UserError for what is no run, and where the page cannot
    be written or would replace something else.
    """
    if len(runs) > MOST_RUNS:
        raise UserError(
            f"report: {len(runs)} runs are more than a page can tell apart; name at most {MOST_RUNS}"
        )
    records = [read_run(run) for run in runs]
    path = output or (runs[0] / NAME if len(runs) == 1 else Path(NAME))
    write_page(records, path)
    print(f"wrote {path}: open it in a browser")
    return 0


def write_page(records: Sequence[RunRecord], path: Path) -> None:
    """Renders and writes a page. Raises UserError where that cannot be."""
    if path.is_file() and OURS not in _head(path):
        raise UserError(f"report: {path} is there already and is no report; name another file by --output")
    page = render(records)
    try:
        with write_atomic(path) as file:
            file.write(page)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the command line says so
        remedy = "; name another file by --output" if error.errno in (errno.EACCES, errno.EROFS) else ""
        raise UserError(f"report: {path} cannot be written: {error.strerror}{remedy}") from error


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return os.read(file.fileno(), 2000)
    except OSError:
        return b""
