"""A number of an estimate, with the formula and the source that it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A part of an estimate: what `--explain` and `--json` show of it.

    name: what it is of, as in "weights". unit: of value, as in "bytes" or "s". formula: with its numbers.
    source: of the formula or of a constant in it: a paper, a datasheet, a file of the code, a measurement.
    """

    name: str
    value: float
    unit: str
    formula: str
    source: str = ""
