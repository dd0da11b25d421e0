"""A curve in one line of text."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#@"
FROM_LARGEST = 0.1
"""Share of the columns whose values may exceed the scale: else a loss's first steps flatten all others."""


def sparkline(points: Sequence[tuple[int, float]], width: int, blocks: str = BLOCKS) -> str:
    """A curve through points (step, value), in ascending steps, over at most `width` columns.

    A column is the mean of its points; one without points repeats the one before it. The scale reaches from
    the smallest column to the largest but those of FROM_LARGEST.
    """
    columns = _columns(points, width)
    if not columns:
        return ""
    ranked = sorted(columns)
    low, high = ranked[0], ranked[-1 - int(len(ranked) * FROM_LARGEST)]
    span, top = high - low, len(blocks) - 1
    heights = (min(1.0, (value - low) / span) if span > 0 else 0.0 for value in columns)
    return "".join(blocks[round(height * top)] for height in heights)


def _columns(points: Sequence[tuple[int, float]], width: int) -> list[float]:
    if not points or width < 1:
        return []
    width = min(width, len(points))
    first, last = points[0][0], points[-1][0]
    span = max(1, last - first + 1)
    sums, counts = [0.0] * width, [0] * width
    for step, value in points:
        place = min(width - 1, max(0, (step - first) * width // span))
        sums[place] += value
        counts[place] += 1
    columns = list[float]()
    for total, count in zip(sums, counts, strict=True):
        columns.append(total / count if count else columns[-1])
    return columns


class Curve:
    """Points (step, value) of any number of steps in bounded memory: neighbours become their mean.

    capacity: of points, at most; even.
    """

    def __init__(self, capacity: int = 1024) -> None:
        self._capacity, self._together = capacity, 1
        self.points: list[tuple[int, float]] = []
        self._open: list[tuple[int, float]] = []

    def add(self, step: int, value: float) -> None:
        """A further point; steps ascend."""
        self._open.append((step, value))
        if len(self._open) < self._together:
            return
        self.points.append(_mean(self._open))
        self._open = []
        if len(self.points) >= self._capacity:
            self.points = [_mean(self.points[k : k + 2]) for k in range(0, len(self.points), 2)]
            self._together *= 2


def _mean(points: Sequence[tuple[int, float]]) -> tuple[int, float]:
    """The last step, and the mean value."""
    return points[-1][0], sum(value for _, value in points) / len(points)
