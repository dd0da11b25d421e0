"""Which checkpoints are kept for good, of a run and of its copies. The copier imports it: no torch here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkit.config.schema import Checkpoint


def is_kept(step: int | None, every: int, best: int | None) -> bool:
    """Whether the checkpoint of a step is kept however old it is.

    step: None for one that is not named by a step. every: those whose step it divides; 0 = none of them.
    best: step of the best one; None where there is none.
    """
    return step is not None and (step == best or (every > 0 and step % every == 0))


def count_for_good(checkpoint: Checkpoint, after: int, last: int, seconds: float = 0.0) -> int:
    """How many checkpoints of the steps beyond `after`, up to `last`, `keep_every` keeps, by estimate.

    seconds: that these steps take, for saves by the clock, of which one in `keep_every` meets such a step; 0
    where it is not known: then at least so many.
    """
    if not (every := checkpoint.keep_every):
        return 0
    steady = math.lcm(every, checkpoint.every_steps)
    by_steps = last // steady - after // steady if steady else 0
    by_clock = checkpoint.every_minutes and seconds / (60.0 * checkpoint.every_minutes)
    return min(last // every - after // every, by_steps + math.ceil(by_clock / every))
