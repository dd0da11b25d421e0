"""Which checkpoints are kept for good, of a run and of its copies. The copier imports it: no torch here."""

from __future__ import annotations


def is_kept(step: int | None, every: int, best: int | None) -> bool:
    """Whether the checkpoint of a step is kept however old it is.

    step: None for one that is not named by a step. every: those whose step it divides; 0 = none of them.
    best: step of the best one; None where there is none.
    """
    return step is not None and (step == best or (every > 0 and step % every == 0))
