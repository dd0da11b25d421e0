"""The table of drills: a row for each way in which one was performed, and for each that was not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.drills.catalogue import DRILLS, Drill

Result = Literal["passed", "failed", "cannot be run here", "only with --all", "missing"]
Figure = tuple[str, float | str, str]
"""Name, value and unit of what a test has measured."""


@dataclass
class Outcome:
    """What came of one test."""

    drills: list[Drill]
    result: Result = "only with --all"
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    drill: str
    injection: str
    expected: str
    measured: str
    result: Result
    reason: str = ""


def rows(outcomes: Iterable[Outcome], wanted: Sequence[str]) -> list[Row]:
    """The table of what the tests of the `wanted` drills have shown; one without a test is "missing"."""
    tests: dict[Drill, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        for drill in outcome.drills:
            tests[drill].append(outcome)
    made = []
    for number in wanted:
        performed = [drill for drill in tests if drill.number == number]
        made += [_row(drill, tests[drill]) for drill in performed]
        if not performed:
            made.append(Row(number, DRILLS[number], "", "", "missing", "no test performs it"))
    return made


def _row(drill: Drill, outcomes: list[Outcome]) -> Row:
    """That of the tests which perform a drill in the same way."""
    order: list[Result] = ["failed", "passed", "cannot be run here"]
    result: Result = next(
        (kind for kind in order if any(outcome.result == kind for outcome in outcomes)), "only with --all"
    )
    reasons = [outcome.reason for outcome in outcomes if outcome.reason]
    left_out = sum(outcome.result in ("cannot be run here", "only with --all") for outcome in outcomes)
    if result in ("passed", "failed") and left_out:
        reasons.append(f"{left_out} of {len(outcomes)} tests did not run")
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    reason = "; ".join(dict.fromkeys(reasons))
    return Row(drill.number, drill.injection, drill.expected, measured(figures), result, reason)


def measured(figures: Iterable[Figure]) -> str:
    """Figures as text; of those that have one name the smallest and the largest."""
    values: dict[tuple[str, str], list[float | str]] = defaultdict(list)
    for name, value, unit in figures:
        values[name, unit].append(value)
    return "; ".join(
        f"{name} {_span(found)}{' ' if unit else ''}{unit}" for (name, unit), found in values.items()
    )


def _span(values: list[float | str]) -> str:
    numbers = [value for value in values if not isinstance(value, str)]
    if len(numbers) < len(values):
        return ", ".join(dict.fromkeys(map(_text, values)))
    ends = dict.fromkeys((_text(min(numbers)), _text(max(numbers))))
    return " to ".join(ends)


def _text(value: float | str) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def summary(table: Iterable[Row]) -> str:
    """How many rows there are of each result."""
    counts: dict[str, int] = defaultdict(int)
    for row in table:
        counts[row.result] += 1
    return ", ".join(f"{count} {result}" for result, count in sorted(counts.items(), key=lambda x: -x[1]))


def markdown(table: Iterable[Row]) -> str:
    """The table for the documentation."""
    lines = ["| drill | what was done | what must come of it | measured | result |", "| --- |" + " --- |" * 4]
    for row in table:
        result = f"{row.result}: {row.reason}" if row.reason else row.result
        cells = (row.drill, row.injection, row.expected, row.measured, result)
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
