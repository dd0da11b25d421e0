"""The columns of a metrics.jsonl as arrays."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic_core import from_json

from llmkit.files import cannot_read
from llmkit.monitor.jsonlines import Row, parse

LARGEST_STEP = 2**53
LARGEST = 1e100
"""Values beyond it count as not finite: no figure of a run is so large, and sums of them could overflow."""


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
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        lines = [b""]
    except OSError as error:
        raise cannot_read(path, error) from error
    del lines[-1]  # what follows the last newline is still being written
    steps: defaultdict[str, list[int]] = defaultdict(list)
    values: defaultdict[str, list[Any]] = defaultdict(list)
    texts: dict[str, str] = {}
    rows = 0
    for line in lines:
        row = _parsed(line) or {}
        step = row.get("step")
        if type(step) is not int or not 0 <= step <= LARGEST_STEP:
            continue
        rows += 1
        for name, value in row.items():
            if value is None or type(value) in (float, int, bool):
                steps[name].append(step)
                values[name].append(value)
            elif type(value) is str:
                texts[name] = value
    numbers = {name: _series(steps[name], values[name]) for name in steps}
    return Columns(numbers, texts, rows, len(lines) - rows)


def _parsed(line: bytes) -> Row | None:
    """As `parse`, four times as fast."""
    try:
        row = from_json(line)
    except ValueError:
        return parse(line)  # which also takes lone surrogates
    return row if isinstance(row, dict) else None


def _series(steps: list[int], values: list[Any]) -> Series:
    known, at = _array(values), np.array(steps, np.int64)
    if at.size > 1 and not np.all(np.diff(at) > 0):
        order = np.argsort(at, kind="stable")
        at, known = at[order], known[order]
        newest = np.append(np.diff(at) > 0, True)
        at, known = at[newest], known[newest]
    return Series(at, np.where(np.abs(known) < LARGEST, known, np.nan))


def _array(values: list[Any]) -> np.ndarray:
    try:
        return np.array(values, np.float64)  # None becomes NaN
    except OverflowError:  # a whole number that no float holds
        return np.array([_float(value) for value in values])


def _float(value: float | int | None) -> float:
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.nan
