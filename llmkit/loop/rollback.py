"""Going back after a spike: to a checkpoint from before it, and on without the rows that may have caused it.

As PaLM did by hand (Chowdhery et al. 2022, section 5.1). What is left out is on record with the event
"rollback", so that a start that goes on from a checkpoint of before knows of it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llmkit.checkpoint.commit import delete_checkpoint
from llmkit.checkpoint.format import folder_name
from llmkit.checkpoint.read import Checkpoint, folders, newest
from llmkit.data.loader import TrainLoader
from llmkit.data.omitted import Window
from llmkit.errors import RunFault
from llmkit.loop.best import forget_later_best
from llmkit.loop.evaluations import take_over_record
from llmkit.loop.samples import cut_back_samples
from llmkit.loop.state import TrainState
from llmkit.monitor.events import EventLog
from llmkit.monitor.jsonlines import Row
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer


class Rollbacks:
    """The rollbacks of a run. events: what is on record of it, oldest first."""

    def __init__(self, events: Iterable[Row] = ()) -> None:
        self.windows: list[Window] = []
        """Left out, in the order in which that was decided, since the data last changed."""
        self.without_save = 0
        """Rollbacks since a checkpoint was saved."""
        self.asked = 0
        """The step of a spike that asks for a rollback; 0 = none does."""
        for event in events:
            if event.get("event") == "rollback":
                self.windows += _windows(event.get("rows"))
                self.without_save += 1
            elif event.get("event") == "save":
                self.without_save = 0
            elif event.get("event") == "data_change":
                self.windows.clear()

    def apply(self, loader: TrainLoader) -> None:
        """Leaves out what is still to come of the windows."""
        self.windows = [
            loader.omit(window) if window[0] >= loader.position else window for window in self.windows
        ]


def rollbacks_on_record(events: EventLog, mesh: Mesh) -> Rollbacks:
    """Those of earlier starts, which rank 0 has on record. Collective."""

    def read() -> str:
        return json.dumps([{name: event.get(name) for name in ("event", "rows")} for event in events.rows()])

    return Rollbacks(json.loads(on_rank_zero(mesh, read)))


def _windows(rows: object) -> list[Window]:
    """What an event says; nothing where it was damaged."""
    if not (isinstance(rows, list) and len(rows) == 2 and all(isinstance(each, int) for each in rows)):
        return []
    return [(rows[0], rows[1])]


def roll_back_if_asked(t: Trainer) -> bool:
    """Whether the run has gone back, because a rank asks for it. Collective, between two steps."""
    if t.config.faults.on_spike != "rollback":
        return False
    (spike,) = t.control.largest(t.rollbacks.asked)
    return spike > 0 and roll_back(t, spike)


def roll_back(t: Trainer, spike: int) -> bool:
    """Goes back to before the step `spike`; returns whether there was a checkpoint to go back to.

    Collective, between two steps. Raises RunFault where the run has gone back too often in vain.
    """
    faults, rollbacks, note = t.config.faults, t.rollbacks, t.console.note
    if end := t.control.close().max_steps:  # is asked for once
        t.end_after(end)
    t.log.flush()
    t.saves.settle()
    t.agreed, rollbacks.asked = t.agreed._replace(rollback=0), 0
    if rollbacks.without_save >= faults.max_rollbacks:
        raise RunFault(
            f"step {spike}: a spike again after {rollbacks.without_save} rollbacks without a new checkpoint "
            "between them (faults.max_rollbacks); look at the data around it, lower "
            "optimizer.learning_rate, or raise faults.rollback_margin"
        )
    root, first = t.folder.checkpoints, max(1, spike - faults.rollback_margin)
    with t.phases.span("start"):  # all of a checkpoint is read, to verify it
        found = (newest(root, note, t.mesh, below=step) for step in (first, spike))
        usable = (each for each in found if each is not None and t.loader.has_data_of(each.state["data"]))
        checkpoint = next(usable, None)
    if checkpoint is None:
        what = f"no checkpoint is from before step {spike} (and of the data of now), to go back to"
        note(f"{what}: training goes on", important=True)
        return False
    last = t.state.step
    with t.phases.span("start"):
        t.loader.rewind(checkpoint.state["data"], checkpoint.step)
        rollbacks.apply(t.loader)
        begin = t.loader.begin_of
        rows = t.loader.omit((begin(max(first, checkpoint.step + 1)), begin(spike + 1)))
        rollbacks.windows.append(rows)
        rollbacks.without_save += 1
        _restore(t, checkpoint)
        with fail_together(t.mesh):
            if t.mesh.rank == 0:
                _put_on_record(t, spike, last, rows)
        take_over_record(t)
    t.loader.start()
    note(
        f"step {spike}: gone back from step {last} to the checkpoint of step {t.state.step}; "
        f"{rows[1] - rows[0]:,} rows are left out (positions {rows[0]:,} to {rows[1] - 1:,})",
        important=True,
    )
    return True


def _restore(t: Trainer, checkpoint: Checkpoint) -> None:
    """Makes everything what it was when the checkpoint was saved, but for the position in the data."""
    t.restore(checkpoint)
    earlier = TrainState.from_json(checkpoint.state["progress"], checkpoint.origin)
    t.state.go_back(earlier, t.config.evaluate.early_stopping)
    t.saved_step = checkpoint.step
    t.console.max_steps = t.state.max_steps
    t.load_recorded(checkpoint.state)
    t.close()  # each rank its list of rows, before it is cut back


def _put_on_record(t: Trainer, spike: int, last: int, rows: Window) -> None:
    """Drops what is not true any more, checkpoints first: a start in between finds the same spike again."""
    step = t.state.step
    t.folder.require_current()
    forget_later_best(t)
    for path in folders(t.folder.checkpoints):
        if path.name > folder_name(step):
            delete_checkpoint(path)
    t.ledger.take_back(t.metrics.rows(), t.events.rows(), step)
    t.record_event("rollback", step=spike, from_step=last, to_step=step, rows=list(rows))
    t.cut_back(step)
    cut_back_samples(t.folder.path, step)
