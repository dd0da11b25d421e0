"""The checkpoints of a run: the state is copied between two steps, and written beside training."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkit.checkpoint.keeping import Keep
from llmkit.checkpoint.stage import HostMemory, Snapshot, stage
from llmkit.checkpoint.write import write_and_commit
from llmkit.errors import RunFault
from llmkit.loop.host_copies import HostCopies
from llmkit.loop.rollback import roll_back_if_asked
from llmkit.parallel.roll_call import is_broken_connection

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer
SETTLE_SECONDS = 600.0
"""How long a rank that ends by an error waits for a save at least."""
CLOSE_SECONDS = 5.0
"""How long the end of a process waits for a save that was given up, because other ranks have gone."""


@dataclass
class _Save:
    """A save that has begun and is not on record yet.

    began: by the clock of the trainer. stall: seconds for which training has waited for it. facts: for its
    event, of the moment at which training went on. written: when it was on disk, or had failed.
    """

    step: int
    path: Path
    began: float
    stall: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    written: float = 0.0


class Saves:
    """Makes the checkpoints of a trainer; every method is collective, between two steps.

    At most one save is in flight: it was begun and is not on record. The next one, a stop, a rollback and the
    end wait for it. With `checkpoint.background` it is written by a thread, which talks with those of the
    other ranks over a process group of its own; without it, or where the host has no memory for a copy of the
    state, by the thread that trains.

    local_size: processes of this run on this host, which share its memory.
    """

    def __init__(self, t: Trainer, local_size: int) -> None:
        self._t = t
        self._begun = 0
        self._flight: _Save | None = None
        self._outcome: Future[list[str]] = Future()
        self._copies = HostCopies(t, local_size)
        self.failed = 0
        """Saves that have failed since the last one that succeeded."""
        self.seconds = 0.0
        """From the begin of the last save to its end."""

    @property
    def in_flight(self) -> bool:
        """Whether a save was begun that is not on record yet."""
        return self._flight is not None

    @property
    def finished(self) -> int:
        """How many saves this rank has finished, in whatever way; looked at after each step."""
        return self._begun - (self._flight is not None and not self._outcome.done())

    def save(self) -> Path:
        """Saves this moment, unless that is done; waits until it is on disk. Returns the checkpoint's folder.

        Raises RunFault, on all ranks, where it cannot be written; what was there before is then still there.
        """
        t = self._t
        self.settle()
        if t.saved_step == t.state.step:
            return t.checkpoint
        t.log.flush()
        if roll_back_if_asked(t):
            return t.checkpoint
        self._begin(None)
        self._take_outcome()
        return t.checkpoint

    def save_and_go_on(self) -> None:
        """Saves this moment while training goes on; a failure is reported, and training goes on, too.

        Raises RunFault, on all ranks, where `checkpoint.max_failed_saves` have failed in a row.
        """
        t = self._t
        t.log.flush()  # what this raises is no failure to save
        if roll_back_if_asked(t) or (self._flight is not None and self._flight.step == t.state.step):
            return
        self.settle()
        if t.saved_step == t.state.step:
            return
        memory = self._copies.memory()
        self._begin(memory)
        if memory is None:
            self.settle()

    def poll(self, finished: int) -> None:
        """After a step: puts the save in flight on record once all ranks have finished it.

        finished: the smallest of the ranks' numbers of finished saves.
        """
        self._copies.prepare_if_expected()
        if self._flight is not None and finished >= self._begun:
            self.settle()

    def settle(self) -> None:
        """Waits for the save in flight, and puts it on record; a failure as in `save_and_go_on`."""
        step = self._t.state.step if self._flight is None else self._flight.step
        try:
            self._take_outcome()
        except RunFault as fault:
            self._report(step, fault)

    def settle_after(self, error: BaseException) -> None:
        """The same where this rank ends by an error: less is lost then. Not collective, raises nothing.

        Where other ranks have gone, or the user wants an end at once, nothing is waited for; else no longer
        than SETTLE_SECONDS, or three times as long as the last save took: a disk may hang.
        """
        t, save = self._t, self._flight
        if save is None:
            return
        gone = t.mesh.roll_call is not None and t.mesh.roll_call.gone
        limit = max(SETTLE_SECONDS, 3.0 * self.seconds) if isinstance(error, Exception) and not gone else 0.0
        with t.phases.span("save"):
            wait([self._outcome], limit)
        with suppress(Exception):
            if self._outcome.done():
                self.settle()
            elif limit:
                reason = f"it was not on disk {limit:,.0f} s after the fault that ends the run"
                # First where it is seen: the disk with the events may be the one that hangs.
                t.console.note(f"NOT SAVED, {save.path}: {reason}", important=True)
                t.events.record("save_failed", step=save.step, reason=reason)

    def close(self) -> None:
        """Waits for the threads, of a save at most CLOSE_SECONDS: a process must not end while one of them is
        in C++ code, where the interpreter cannot stop it without an abort."""
        self._copies.close()
        if self._flight is not None:
            wait([self._outcome], CLOSE_SECONDS)

    def _begin(self, memory: HostMemory | None) -> None:
        """Stages this moment, and writes it: beside training from a copy in `memory`, without it at once."""
        t = self._t
        t.checks.before_save()
        save, outcome = _Save(t.state.step, t.checkpoint, t.clock()), Future[list[str]]()
        with t.phases.span("save"):
            snapshot = Snapshot(
                t.state.step, t.engine.read_pieces(), checkpoint_state(t), t.plan.model.to_dict(),
                t.config.model_dump(mode="json"), t.data.tokenizer.files(),
            )  # fmt: skip
            snapshot = stage(snapshot, memory)
            work = (snapshot, save, outcome)
            self._flight, self._outcome, self._begun = save, outcome, self._begun + 1
            if memory is not None:
                threading.Thread(target=self._write, args=work, name="save", daemon=True).start()
            else:
                self._write(*work)
        save.stall = t.clock() - save.began
        t.spending.update()
        save.facts = {"account": t.ledger.now().to_json(), "spent": t.spending.used()}

    def _write(self, snapshot: Snapshot, save: _Save, outcome: Future[list[str]]) -> None:
        """Writes a snapshot, with all other ranks; in the background, too."""
        t, notes, kept = self._t, list[str](), self._t.config.checkpoint
        mesh = replace(t.mesh.for_saving(), roll_call=None)  # that is for the thread which trains
        try:
            write_and_commit(
                t.folder.checkpoints, snapshot, keep=Keep(kept.keep_last, kept.keep_every), mesh=mesh,
                note=notes.append, claim=t.folder.claim,
            )  # fmt: skip
        except BaseException as error:
            save.written = t.clock()
            outcome.set_exception(error)
        else:
            save.written = t.clock()
            outcome.set_result(notes)

    def _take_outcome(self) -> None:
        """Waits for the save in flight, if there is one, and puts it on record. Raises what it has raised."""
        if self._flight is None:
            return
        t, save, since = self._t, self._flight, self._t.clock()
        with t.phases.span("save"):
            error = self._outcome.exception()  # waits
            save.stall += t.clock() - since
            self._flight = None
            if error is not None:
                raise _broken(error) or error
            self.seconds = save.written - save.began
            for note in self._outcome.result():
                t.console.note(note)
            self._on_published(save)

    def _on_published(self, save: _Save) -> None:
        """What follows on a checkpoint that is there, on all ranks, in the thread that trains."""
        t = self._t
        t.saved_step, t.rollbacks.without_save, self.failed = save.step, 0, 0
        seconds, stall = round(self.seconds, 3), round(save.stall, 6)
        t.events.record(
            "save", step=save.step, path=save.path.name, seconds=seconds, stall_seconds=stall, **save.facts
        )
        t.hooks.call("after_save", t, save.path)

    def _report(self, step: int, fault: RunFault) -> None:
        """Puts a failed save on record. Raises RunFault where too many have failed in a row."""
        t = self._t
        with suppress(OSError):  # of a disk that fails: it will be looked at before the next save
            t.folder.claim.is_current()
        t.folder.claim.raise_if_lost()  # such a start ends
        t.events.record("save_failed", step=step, reason=str(fault))
        self.failed += 1
        if self.failed == t.config.checkpoint.max_failed_saves:
            raise RunFault(
                f"{self.failed} saves in a row have failed (checkpoint.max_failed_saves), "
                f"the last one: {fault}"
            ) from fault
        t.console.note(f"NOT SAVED, training goes on: {fault}", important=True)


def _broken(error: BaseException) -> BaseException | None:
    """The broken connection behind an error of a save, which ends the run; None: there is none behind it."""
    cause = error.__cause__
    is_broken = isinstance(error, RunFault) and cause is not None and is_broken_connection(cause)
    return cause if is_broken else None


def checkpoint_state(t: Trainer) -> dict[str, Any]:
    """What a checkpoint keeps beside the engine's state. Collective."""
    return {
        "progress": t.state.to_json(),
        "data": t.loader.state_dict(t.mesh.all_gather_text),
        "updates": t.engine.optimizer_steps,
        "precision": t.plan.precision.name,
        "layout": t.plan.layout.to_dict(),
        "kernels": t.plan.kernels.in_use,
        "started_in": os.getcwd(),  # where relative paths of the settings start from
        "hooks": t.hooks.states(),
        "recorded": t.recorder.state(),
        "details": t.details.state(),
        **({"init_from": t.init_from} if t.init_from else {}),
        **({"branched_from": t.branched_from} if t.branched_from else {}),
    }
