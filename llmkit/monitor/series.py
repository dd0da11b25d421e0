"""The columns of a metrics.jsonl as arrays."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json

from llmkit.files import cannot_read, open_regular
from llmkit.monitor.jsonlines import Row, parse

LARGEST_STEP = 2**53
LARGEST = 1e100
"""Values beyond it count as not finite: no figure of a run is so large, and sums of them could overflow."""
NUMBERS = {float, int, bool, type(None)}
"""Types of the values of a column of numbers."""
BLOCK = 512
"""Lines that are parsed before their columns become arrays: what is parsed should stay in the cache."""


class Series(NamedTuple):
    """The values of a column. steps: (n,) int64, rising; values: (n,) float64, NaN where one is null."""

    steps: np.ndarray
    values: np.ndarray

    @property
    def last(self) -> float | None:
        """The newest value that is a number; None where there is none."""
        known = self.values[np.isfinite(self.values)]
        return float(known[-1]) if known.size else None

    def at(self, steps: np.ndarray) -> np.ndarray:
        """The value at each of some steps: that of the newest row up to it, NaN before the first."""
        index = np.searchsorted(self.steps, steps, side="right") - 1
        return np.where(index >= 0, self.values[np.maximum(index, 0)], np.nan)


class Columns(NamedTuple):
    """What a metrics.jsonl holds. numbers: true counts as 1; texts: the newest text of each column of texts.

    rows: how many were read; damaged: lines that are no row.
    """

    numbers: dict[str, Series]
    texts: dict[str, str]
    rows: int
    damaged: int


def read_columns(path: Path) -> Columns:
    """Reads a file of rows with a `step`; none if it is not there. A line that is no row is left out.

    Where a column has several values for one step the last one counts. Raises UserError where the file
    cannot be read.
    """
    try:
        with open_regular(path) as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        lines = [b""]
    except OSError as error:
        raise cannot_read(path, error) from error
    del lines[-1]  # what follows the last newline is still being written
    parts: defaultdict[str, list[_Part]] = defaultdict(list)
    texts: dict[str, tuple[int, str]] = {}
    rows = 0
    for begin in range(0, len(lines), BLOCK):
        for names, group in _by_names(lines[begin : begin + BLOCK], begin).items():
            rows += len(group.lines)
            _take(names, group, parts, texts)
    series = {name: _series(each) for name, each in parts.items()}
    return Columns(series, {name: text for name, (_, text) in texts.items()}, rows, len(lines) - rows)


class _Group:
    """Rows that have the same columns: the line, the step and the values of each."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.steps: list[int] = []
        self.values: list[tuple[Any, ...]] = []


class _Part(NamedTuple):
    """Values of a column, with their lines and steps; (n,) each."""

    lines: np.ndarray
    steps: np.ndarray
    values: np.ndarray


def _by_names(lines: list[bytes], first: int) -> dict[tuple[str, ...], _Group]:
    """Rows by the names of their columns, which most rows of a run share. first: number of the first line."""
    groups: defaultdict[tuple[str, ...], _Group] = defaultdict(_Group)
    for number, line in enumerate(lines, first):
        row = _parsed(line) or {}
        step = row.get("step")
        if type(step) is int and 0 <= step <= LARGEST_STEP:
            group = groups[tuple(row)]
            group.lines.append(number)
            group.steps.append(step)
            group.values.append(tuple(row.values()))
    return groups


def _take(
    names: tuple[str, ...], group: _Group, parts: dict[str, list[_Part]], texts: dict[str, tuple[int, str]]
) -> None:
    """Adds the columns of a group to `parts`, and to `texts` (line, text) where it holds newer ones."""
    lines, steps = np.array(group.lines), np.array(group.steps, np.int64)
    for name, values in zip(names, zip(*group.values, strict=True), strict=True):
        kinds = set(map(type, values))
        if str in kinds:
            newest = max(at for at, value in enumerate(values) if type(value) is str)
            texts[name] = max(texts.get(name, (-1, "")), (group.lines[newest], values[newest]))
        if kinds <= NUMBERS:
            parts[name].append(_Part(lines, steps, _array(values)))
        elif kinds & NUMBERS:
            kept = [at for at, value in enumerate(values) if type(value) in NUMBERS]
            parts[name].append(_Part(lines[kept], steps[kept], _array([values[at] for at in kept])))


def _parsed(line: bytes) -> Row | None:
    """As `parse`, four times as fast."""
    try:
        row = from_json(line)
    except ValueError:
        return parse(line)  # which also takes lone surrogates
    return row if isinstance(row, dict) else None


def _series(parts: list[_Part]) -> Series:
    lines, at, known = (np.concatenate(each) for each in zip(*parts, strict=True))
    if len(parts) > 1:
        order = np.argsort(lines, kind="stable")
        at, known = at[order], known[order]
    if at.size > 1 and not np.all(np.diff(at) > 0):
        order = np.argsort(at, kind="stable")
        at, known = at[order], known[order]
        newest = np.append(np.diff(at) > 0, True)
        at, known = at[newest], known[newest]
    return Series(at, np.where(np.abs(known) < LARGEST, known, np.nan))


def _array(values: Sequence[Any]) -> np.ndarray:
    try:
        return np.array(values, np.float64)  # None becomes NaN
    except OverflowError:  # a whole number that no float holds
        return np.array([_float(value) for value in values])


def _float(value: float | int | None) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
