"""The check before a job starts: each node writes what it finds into a folder, one process compares it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from llmkit.doctor.compare import compare, silent
from llmkit.doctor.disk import clear, nodes_seen
from llmkit.doctor.findings import Report, report_from_json
from llmkit.errors import UserError
from llmkit.files import write_json

SUFFIX = ".json"


def write_report(folder: Path, report: Report) -> None:
    """Leaves a node's report for `read_reports`. Raises UserError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{Path(report.node).name}{SUFFIX}", report.to_json())
    except OSError as error:
        raise UserError(
            f"doctor --node: cannot write into {folder}: {error.strerror}; name a folder that all nodes share"
        ) from error


def read_reports(folder: Path, expected: int | None, names: Sequence[str] = ()) -> list[Report]:
    """The reports in a folder, in the order of `names`, and a failing one of each node that has left none.

    expected: how many there should be. names: of all nodes, where they are known. Raises UserError where
    the folder cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError as error:
        raise UserError(f"doctor --table: cannot read {folder}: {error.strerror}") from error
    found = {path.stem: _read(path) for path in paths}
    order = dict.fromkeys((*names, *found))
    reports = [found.get(name) or silent(name, "no report: it has not answered in time") for name in order]
    unnamed = 0 if expected is None else max(0, expected - len(reports))
    return reports + [silent(f"unknown-{number + 1}", "no report") for number in range(unnamed)]


def _read(path: Path) -> Report:
    try:
        report = report_from_json(path.read_text(errors="replace"))
        if report.node != path.stem:
            raise ValueError(f"it is of {report.node}")
    except (OSError, ValueError, RecursionError) as error:
        return silent(path.stem, f"its report cannot be read: {error}")
    return report


def compared(reports: Sequence[Report], meeting: str) -> list[Report]:
    """The reports, compared; files that show whose run folder is whose are looked for here, and removed."""
    places = {each.value for report in reports if (each := report.find("shared folder"))}
    seen: list[str] = []
    for place in sorted(places):
        seen += nodes_seen(Path(place), meeting)
        clear(Path(place), meeting, [report.node for report in reports])
    return compare(reports, seen)


def meeting_of(what: str) -> str:
    """A name that only the nodes of one check have: `what` is its folder, or its job step."""
    return hashlib.sha256(os.fsencode(what)).hexdigest()[:16]
