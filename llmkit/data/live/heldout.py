"""Which documents of a live source are held out for evaluation.

How many documents such a source has is not known before it was read, so a fixed few near the beginning of
some splits are chosen, by index alone: training passes over exactly these.
"""

from __future__ import annotations

SPLITS = 16
"""Splits, at most, that give held-out documents; they are evenly spread over the source."""
DOCUMENTS = 16
"""Held-out records, at most, of such a split."""


def heldout_records(splits: int, every: int) -> dict[int, range]:
    """Indices of held-out records by split, of so many: every `every`-th from its beginning; none for 0.

    A split may have fewer records than that. Of 2 splits every 20th: {0: 19, 39, ... 319; 1: the same}.
    """
    chosen = min(SPLITS, splits) if every else 0
    return {k * splits // chosen: range(every - 1, DOCUMENTS * every, every) for k in range(chosen)}
