"""The best checkpoint of a run, that of its lowest held-out loss: saved (`checkpoint.keep_best`) and named.

`best.json` beside the checkpoints names it (`llmkit.checkpoint.keeping`). It is changed only once the
checkpoint that it is to name is there, so that at every moment it names one that is kept.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from llmkit.checkpoint.format import Damaged, folder_name
from llmkit.checkpoint.keeping import Best, read_best, write_best
from llmkit.loop.hook import Hook

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


class NameBest(Hook):
    """Names the best checkpoint as soon as it is saved."""

    def after_save(self, t: Trainer, path: Path) -> None:
        """See `name_best`."""
        name_best(t)


def keep_if_best(t: Trainer) -> None:
    """After an evaluation: saves this moment and names it, if its loss is the lowest so far. Collective."""
    if t.config.checkpoint.keep_best and t.state.best_eval_step == t.state.step:
        t.saves.save_and_go_on()
        name_best(t)


def name_best(t: Trainer) -> None:
    """Names the checkpoint of the best evaluation, if that is there; on rank 0.

    Where it cannot be named, training goes on: the one before stays named, and is kept.
    """
    best = _best_of(t)
    if t.mesh.rank > 0 or not t.config.checkpoint.keep_best or best is None:
        return
    root = t.folder.checkpoints
    try:
        if read_best(root) != best:
            write_best(root, best, t.folder.require_current)
            t.events.record("best", step=best.step, eval_loss=best.eval_loss)
    except (OSError, Damaged) as error:
        t.console.note(f"the best checkpoint, {folder_name(best.step)}, cannot be named: {error}")


def forget_later_best(t: Trainer) -> None:
    """Where a checkpoint of a step is named that the run has not made, or the name cannot be read, names the
    best of those that it has made, or none. On rank 0. Raises OSError."""
    root = t.folder.checkpoints
    try:
        named = read_best(root)
        stale = named is not None and named.step > t.state.step
    except Damaged as error:
        t.console.note(f"{error}")
        stale = True
    if stale:
        write_best(root, _best_of(t), t.folder.require_current)


def _best_of(t: Trainer) -> Best | None:
    """The best evaluation, if there is a checkpoint of its step."""
    step, loss = t.state.best_eval_step, t.state.best_eval_loss
    if step is None or loss is None or not os.path.lexists(t.folder.checkpoints / folder_name(step)):
        return None
    return Best(step, loss)
