"""Line charts as SVG paths that stretch with the page; labels stay text of the page, so they stay readable.

A plotting library was weighed: matplotlib's SVG is 200 kB a figure, has one colour scheme and does not know
the width that it is shown at; plotly and vega need 1 to 4 MB of script. What is needed here is less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

SIZE = 1000
"""Units of a plot in either direction; SVG stretches it to what the page has."""
BINS = 500
"""Parts of a plot in each of which a curve has its least and its largest value: more could not be seen."""
EARLY, MANY = 0.02, 100
"""Share of a curve that does not decide the range of y, where more points than this follow: a first loss
would flatten all that comes later."""


@dataclass(frozen=True)
class Curve:
    """x, y: (n,) float64; y may have NaN, which leave a gap. color: index into the page's colours."""

    name: str
    x: np.ndarray
    y: np.ndarray
    color: int = 0
    kind: Literal["line", "raw", "dots"] = "line"


@dataclass(frozen=True)
class Mark:
    """Something that happened at an x. kind: names its style."""

    x: float
    kind: str
    text: str


@dataclass(frozen=True)
class Scale:
    """From numbers to 0 .. SIZE.

    unit: what shown numbers are divided by, its name. most: ticks, about. counts: whether there is nothing
    between whole numbers.
    """

    low: float
    high: float
    log: bool = False
    unit: tuple[float, str] = (1.0, "")
    most: int = 5
    counts: bool = False

    def of(self, values: np.ndarray) -> np.ndarray:
        """Positions; beyond the range they are moved to a little outside of it."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        with np.errstate(divide="ignore", invalid="ignore"):
            shifted = (np.log(values) if self.log else values) - low
        return np.clip(shifted / (high - low) * SIZE, -SIZE, 2 * SIZE)

    def ticks(self) -> list[tuple[float, str]]:
        """Position in percent and text of each tick."""
        values = self._log_ticks() if self.log else self._linear_ticks()
        shown = [value / self.unit[0] for value in values]
        texts = [short(value) for value in shown] if self.log else alike(shown)
        places = self.of(np.array(values)) / SIZE * 100
        return [(round(float(place), 2), text) for place, text in zip(places, texts, strict=True)]

    def _linear_ticks(self) -> list[float]:
        least = (self.high - self.low) / self.unit[0] / self.most
        least = max(least, 1.0) if self.counts else least
        power = 10.0 ** math.floor(math.log10(least))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= least * 0.999) * self.unit[0]
        first = math.ceil(self.low / step - 1e-9)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _log_ticks(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [f * 10.0**n for n in range(first, last + 1) for f in factors]
            found = [value for value in found if self.low <= value <= self.high]
            if len(found) <= self.most + 2:
                break
        stride = math.ceil(len(found) / (self.most + 2))
        return found[::stride] if len(found) > 1 else self._linear_ticks()


@dataclass(frozen=True)
class Plot:
    """What a page shows of some curves: paths with their class, ticks, marks, all in percent or SVG units."""

    x: Scale
    y: Scale
    paths: list[tuple[str, str, str]]
    """Classes, name, and the path itself."""
    marks: list[tuple[float, str, str]] = field(default_factory=list)
    """Percent, kind, text."""


def draw(
    curves: Sequence[Curve], marks: Sequence[Mark] = (), *, log: bool = False, zero: bool = False,
    reach: float = 0.0, x_unit: tuple[float, str] = (1.0, ""), counts: bool = False,
) -> Plot | None:  # fmt: skip
    """A plot of all curves on the same scales, x from 0; None where there is no point to show. A curve of
    one point is a dot.

    log: a logarithmic y, where all is positive; zero: y begins at 0; reach: least end of x;
    counts: of x.
    """
    points = [np.isfinite(curve.x) & np.isfinite(curve.y) for curve in curves]
    xs = [curve.x[known] for curve, known in zip(curves, points, strict=True)]
    if not any(x.size for x in xs):
        return None
    end = max(reach, *(float(x.max()) for x in xs if x.size)) or 1.0
    x = Scale(0.0, end, unit=x_unit, most=7, counts=counts)
    y = _y_scale(curves, points, log, zero)
    paths = [
        (
            f"{'dots' if x_known.size == 1 else curve.kind} c{curve.color % 8}",
            curve.name,
            path(x.of(curve.x), SIZE - y.of(curve.y), curve.kind == "dots"),
        )
        for curve, x_known in zip(curves, xs, strict=True)
    ]
    placed = [(float(x.of(np.array(mark.x))) / SIZE * 100, mark.kind, mark.text) for mark in marks]
    shown = [(round(at, 2), kind, text) for at, kind, text in placed if -0.01 <= at <= 100.01]
    return Plot(x, y, list(dict.fromkeys(each for each in paths if each[2])), shown)


def _y_scale(curves: Sequence[Curve], points: Sequence[np.ndarray], log: bool, zero: bool) -> Scale:
    values = np.concatenate(
        [_deciding(c.x[known], c.y[known]) for c, known in zip(curves, points, strict=True)]
    )
    low, high = float(values.min()), float(values.max())
    if log and low > 0 and high > 1.5 * low:
        return Scale(max(low, high / 1e6) / 1.05, high * 1.05, log=True)
    low = min(0.0, low) if zero else low
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return Scale(low if zero and low == 0.0 else low - room, high + room)


def _deciding(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The values of a curve that decide the range of y."""
    late = x >= EARLY * x.max(initial=0.0)
    return y[late] if late.sum() > MANY else y


def path(x: np.ndarray, y: np.ndarray, dots: bool = False) -> str:
    """An SVG path through points in whole units, with gaps where y is NaN; "" for none.

    Of many points those stay that are the least and the largest in their part of the plot, so that a spike
    of one step is seen. dots: a dot each instead of a line.
    """
    x, y = _thinned(x, y)
    known = np.isfinite(x) & np.isfinite(y)
    if not known.any():
        return ""
    whole_x, whole_y = np.rint(np.where(known, x, 0)).astype(int), np.rint(np.where(known, y, 0)).astype(int)
    parts, before, pen = [], (0, 0), False
    for there, at_x, at_y in zip(known.tolist(), whole_x.tolist(), whole_y.tolist(), strict=True):
        if not there:
            pen = False
            continue
        if dots or not pen:
            parts.append(f"M{at_x} {at_y}h0")
            pen = True
        elif (at_x, at_y) != before:
            move_x, move_y = at_x - before[0], at_y - before[1]
            parts.append(f"l{move_x}{'' if move_y < 0 else ' '}{move_y}")
        before = (at_x, at_y)
    return "".join(parts)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most four points for each of BINS parts along x: the first, the least, the largest, a gap."""
    if x.size <= 2 * BINS:
        return x, y
    part = np.clip(np.nan_to_num(x) * (BINS / SIZE), 0, BINS - 1).astype(int)
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    kept = []
    for first, end in zip(starts.tolist(), [*starts[1:].tolist(), x.size], strict=True):
        values = y[first:end]
        known = np.isfinite(values)
        if not known.any():
            kept.append(first)
            continue
        of_part = {first + int(np.nanargmin(values)), first + int(np.nanargmax(values))}
        if not known.all():
            of_part.add(first + int(np.argmin(known)))
        kept += sorted(of_part)
    return x[kept], y[kept]


def smooth(y: np.ndarray, share: float = 0.02) -> np.ndarray:
    """The mean of each value's neighbours, `share` of all in all, of those that are there; NaN stays NaN.

    At the ends fewer count, the same number on both sides, so that a slope is not bent; but an eighth of
    them at least, so that a long curve does not end in noise.
    """
    half = int(y.size * share / 2)
    if half < 1:
        return y
    known = np.isfinite(y)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, y, 0.0))))
    counts = np.concatenate(([0], np.cumsum(known)))
    at = np.arange(y.size)
    reach = np.maximum(half // 8, np.minimum(half, np.minimum(at, y.size - 1 - at)))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, y.size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, (sums[high] - sums[low]) / (counts[high] - counts[low]), np.nan)


UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(value: float) -> str:
    """A number for people, in four digits: 1234, 12.35k, 35M, 0.003, 4e-5."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else "not finite"
    if not 1e-3 <= abs(value) < 1e18:
        return _power(f"{value:.3g}")
    power, unit = next((each for each in UNITS if abs(value) >= each[0]), (1.0, ""))
    if power == 1e3 and abs(value) < 1e4:
        power, unit = 1.0, ""
    return f"{value / power:.4g}{unit}"


def alike(values: Sequence[float]) -> list[str]:
    """Evenly spaced numbers with the same unit and the same digits after the point."""
    largest = max(map(abs, values), default=0.0)
    if len(values) < 2 or largest >= 1e18:
        return [short(value) for value in values]
    power, unit = next((each for each in UNITS if largest >= each[0]), (1.0, ""))
    if power == 1e3 and largest < 1e4:
        power, unit = 1.0, ""
    if largest < 1e-2:
        exponent = math.floor(math.log10(largest) + 1e-9)
        power, unit = 10.0**exponent, f"e{exponent}"
    digits = max(0, -math.floor(math.log10((values[1] - values[0]) / power) + 1e-9))
    return [f"{value / power:.{digits}f}{unit}" if value else "0" for value in values]


def _power(text: str) -> str:
    """1e-05 as 1e-5."""
    mantissa, mark, power = text.partition("e")
    return f"{mantissa}e{int(power)}" if mark else text
