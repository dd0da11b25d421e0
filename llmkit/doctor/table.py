"""What was found, as text: of a machine a line each, of many nodes a table and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llmkit.config.mistakes import printable
from llmkit.doctor.compare import sick_nodes
from llmkit.doctor.findings import Finding, Report
from llmkit.monitor.text import thousands

NAME = 15
SHOWN = {"fail": "FAIL", "warn": "warn", "ok": "ok"}
COLUMNS = {"gpus": "gpus", "products": "FLOP/s", "disk speed": "disk B/s", "collectives": "collectives B/s"}
"""Finding: how its column of the table of nodes is called."""
WIDEST = 38
"""Characters of a column of the table of nodes."""


def machine_lines(report: Report) -> Iterator[str]:
    """One machine, whose findings keep their order."""
    for finding in report.findings:
        yield from _lines(finding)
    yield _summary(report)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{SHOWN[finding.state]:<5} {printable(finding.name, 40):<{NAME}} {printable(finding.value, 1000)}"
    if finding.advice and finding.state != "ok":
        yield f"{'':<5} {'':<{NAME}} -> {printable(finding.advice, 1000)}"


def _summary(report: Report) -> str:
    failed = [finding.name for finding in report.of_state("fail")]
    warned = [finding.name for finding in report.of_state("warn")]
    parts = [
        f"{verb}: {', '.join(names)}" for verb, names in (("failed", failed), ("to look at", warned)) if names
    ]
    return "; ".join(parts) or "all is well"


def node_lines(reports: Sequence[Report]) -> Iterator[str]:
    """The nodes of a job, in their order; the last line names those that should be left out."""
    sick = sick_nodes(reports)
    rows: list[tuple[str, ...]] = [("node", "state", *COLUMNS.values())]
    for report in reports:
        state = "sick" if report.node in sick else report.state
        rows.append((report.node, state, *(_short(report.find(name)) for name in COLUMNS)))
    widths = [min(WIDEST, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(
            f"{printable(text, width)[:width]:<{width}}" for text, width in zip(row, widths)
        ).rstrip()
    everywhere = _everywhere(reports)
    if everywhere:
        yield "on all nodes:"
        for finding in everywhere:
            yield from _lines(finding)
    for report in reports:
        left = [f for f in report.findings if f.state != "ok" and not any(_alike(f, e) for e in everywhere)]
        if left:
            yield f"{printable(report.node, 60)}:"
            for finding in sorted(left, key=lambda each: each.state):
                yield from _lines(finding)
    if not everywhere and all(report.state == "ok" for report in reports):
        yield f"{'1 node' if len(reports) == 1 else f'{len(reports)} nodes'}: all is well"
    yield f"sick: {' '.join(sick)}".rstrip()


def _short(finding: Finding | None) -> str:
    """What a column shows: the slowest device, or the value."""
    if finding is None:
        return "-"
    return thousands(min(finding.numbers.values())) if finding.numbers else finding.value


def _everywhere(reports: Sequence[Report]) -> list[Finding]:
    """What is wrong on all nodes alike, as the first one has it."""
    if len(reports) < 2:
        return []
    first, *others = reports
    return [
        finding for finding in first.findings
        if finding.state != "ok" and all(any(_alike(finding, f) for f in other.findings) for other in others)
    ]  # fmt: skip


def _alike(one: Finding, other: Finding) -> bool:
    return (one.name, one.state, one.advice) == (other.name, other.state, other.advice)
