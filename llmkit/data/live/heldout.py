"""Which documents of a live source are held out for evaluation.

Nobody knows how many documents such a source has before it was read, so a fixed few near the beginning of
some units are chosen, by number alone: training passes over exactly these.
"""

from __future__ import annotations

UNITS = 16
"""Units, at most, that give held-out documents; they are evenly spread over the source."""
DOCUMENTS = 16
"""Held-out candidates, at most, of such a unit."""


def heldout_units(units: int, every: int) -> list[int]:
    """Numbers of the units, of so many, that hold candidates to hold out; none where `every` is 0."""
    chosen = min(UNITS, units) if every else 0
    return [k * units // chosen for k in range(chosen)]


def heldout_candidates(every: int) -> range:
    """Numbers of the held-out candidates in each of `heldout_units`: every `every`-th, from its beginning.

    A unit may have fewer candidates than that.
    """
    return range(every - 1, DOCUMENTS * every, every) if every else range(0)
