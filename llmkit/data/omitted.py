"""Rows that a run leaves out of its order, as a rollback does with those that may have done harm.

Positions of the order count all rows. The rows that are trained on have numbers of their own, without the
ones left out: number -> position is all that changes, so the order stays the pure function that it is.

    position  0 1 2 3 4 5 6 7        with the window (2, 5) left out
    number    0 1 - - - 2 3 4

    >>> omitted = Omitted([(2, 5)])
    >>> omitted.number(6), omitted.position(3), omitted.after(1, rows=2)
    (3, 6, 6)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Window = tuple[int, int]
"""The first position that is left out, and the first one behind it that is not."""


class Omitted:
    """Windows of positions that are left out; windows: in any order."""

    def __init__(self, windows: Iterable[Sequence[int]] = ()) -> None:
        self.windows: list[Window] = []
        """Ascending; no two touch."""
        for start, stop in sorted((int(start), int(stop)) for start, stop in windows):
            if self.windows and start <= self.end:
                self.windows[-1] = self.windows[-1][0], max(self.end, stop)
            elif start < stop:
                self.windows.append((start, stop))

    def with_window(self, window: Window, unit: int) -> tuple[Omitted, Window]:
        """These and another one, which is made longer until its rows are a multiple of `unit`; that, too, as
        it is then: together with windows that it touches."""
        while True:
            omitted = Omitted([*self.windows, window])
            start, stop = next(each for each in omitted.windows if each[0] <= window[0] < each[1])
            window = start, stop + (start - stop) % unit
            if window[1] == stop:
                return omitted, window

    @property
    def end(self) -> int:
        """The first position behind all of them; 0 if there are none."""
        return self.windows[-1][1] if self.windows else 0

    def number(self, position: int) -> int:
        """How many rows before `position` are not left out."""
        return position - sum(min(position, stop) - start for start, stop in self.windows if start < position)

    def positions(self, numbers: np.ndarray) -> np.ndarray:
        """Where the rows of these numbers stand; int64, the shape of `numbers`."""
        found = numbers.astype(np.int64, copy=True)
        for start, stop in self.windows:
            found[found >= start] += stop - start
        return found

    def position(self, number: int) -> int:
        """Where the row of this number stands."""
        return int(self.positions(np.array([number]))[0])

    def after(self, position: int, rows: int) -> int:
        """Where the next row stands after `rows` rows have been taken from `position` on."""
        return self.position(self.number(position) + rows)
