"""Copying checkpoints of a run to a store, each once, and the record of the run with them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.copies import catalogue, owner
from llmkit.copies.catalogue import Catalogue, Copy, Record
from llmkit.copies.held import held
from llmkit.copies.journal import Journal
from llmkit.copies.outgoing import MANIFEST, Outgoing, Stored
from llmkit.copies.owner import CopyOwner, Known
from llmkit.copies.record import snapshot
from llmkit.copies.store import Store
from llmkit.data.sources.retries import RequestError, in_thread

SENT_AT_ONCE = 4
"""Files."""
Keeps = Callable[[Sequence[int]], set[int]]
"""Which of the steps of complete copies, in ascending order, are kept."""


class Sender:
    """Copies of one run beneath one URL.

    folder: the run folder. known: what it knows of its copies. command: names this start in messages.

    Its methods raise RequestError where the store does not do as it should, LostError where another start has
    the copies, RunFault where the run folder cannot be read.
    """

    def __init__(self, store: Store, folder: Path, known: Known, command: str) -> None:
        self.store, self._folder, self._known, self._command = store, folder, known, command
        self.mine: CopyOwner | None = None
        self._beating, self._ended = threading.Lock(), False
        self.not_deleted = ""
        """Why the store has not deleted what was to be deleted, the last time."""
        self._catalogue = Catalogue(run=known.run)
        self._to_delete = set[str]()
        """Files that are in the store yet and belong to nothing, by the catalogue there."""
        self._journal = Journal(folder / "copies" / "sent.jsonl", str(store))

    def claim(self, note: Callable[[str], None] = lambda text: None) -> None:
        """Takes the copies for this start. A second call does nothing.

        note: called with why this start waits. Raises UserError, too, where the run folder is a copy of one
        whose start is alive.
        """
        if self.mine is not None:
            return
        found = owner.read(self.store)
        if found is not None and found.run == self._known.run and self._known.is_copy:
            owner.require_free(self.store, found, os.environ, note)
        mine = owner.claimed(found, self._known, self._command, self.store)
        there = catalogue.read(self.store)
        if there is not None and there.run != self._known.run:
            raise owner.LostError(f"{self.store} holds the copies of another run ({there.run})")
        # First here: a start that is killed behind the next line must know later that it was itself.
        self._known = Known(mine.run, mine.start, mine.owner)
        self._known.write(self._folder)
        owner.write(self.store, mine)
        owner.require_mine(self.store, mine)
        self._catalogue = there or self._catalogue
        # To which a start before may not have come.
        self._to_delete = set(self._catalogue.gone) - self._catalogue.paths()
        self.mine = mine

    def has(self, name: str, files: Sequence[Stored]) -> bool:
        """Whether this very checkpoint was copied."""
        return any(copy.complete and copy.files == list(files) for copy in self._of(name))

    def copy(self, name: str, files: Sequence[Stored], keeps: Keeps, newest: int = 0) -> int:
        """Copies a checkpoint, unless that was done, and the record as it is now; then deletes what is not to
        be kept. Returns the bytes that were sent.

        name: of its folder in `checkpoints`. files: all of it, the manifest too. newest: the step that the
        run has come to, if that is a later one. Raises FileNotFoundError where the checkpoint has been
        deleted.
        """
        new = Copy(name=name, complete=False, files=list(files))
        newest = max(newest, new.step)
        if self.has(name, files):
            self.keep_record()
            return 0
        before, sent = self._of(name), self._journal.bytes_sent
        others = [copy for copy in self._catalogue.copies if copy.name != name]
        self._require_mine()
        self._delete(self._to_delete)
        self._publish({copy.path(file) for copy in before for file in copy.files}, copies=[*others, new])
        # Of another checkpoint of this step, maybe: without a manifest what is there now is none.
        manifest = next(file for file in files if file.name == MANIFEST)
        may_be_old = before and not self._journal.has(new.manifest, manifest)
        self._delete({*self._to_delete, new.manifest} if may_be_old else self._to_delete)
        with held(self._folder / "checkpoints" / name, [file.name for file in files]) as folder:
            for last in (False, True):  # the manifest comes last, here as there
                now = [file for file in files if (file.name == MANIFEST) is last]
                self._send_all([(new.path(file), file, folder / file.name) for file in now])
        done = new.model_copy(update={"complete": True})
        steps = [copy.step for copy in [*others, done] if copy.complete and copy.step <= newest]
        kept = keeps(sorted(steps)) | {done.step, max(steps)}
        # Copies of later steps are of a run that has gone back since; incomplete ones were given up.
        staying = [copy for copy in others if copy.complete and copy.step in kept and copy.step <= newest]
        going = [copy for copy in others if copy not in staying]
        self.keep_record([*staying, done], {copy.path(file) for copy in going for file in copy.files})
        self._journal.tidy()
        return self._journal.bytes_sent - sent

    def keep_record(self, copies: Sequence[Copy] | None = None, gone: Set[str] = frozenset()) -> None:
        """Copies the record of the run as it is now, publishes the catalogue with it, and deletes what then
        belongs to nothing, the record of before too.

        copies: those that there are now; by default those of before. gone: files of others.
        """
        found, before = snapshot(self._folder), self._catalogue.record
        record = Record(number=0 if before is None else before.number + 1, files=[file for file, _ in found])
        if before is not None and before.files == record.files:
            if copies is None:
                return
            record = before
        else:
            self._require_mine()
            for file, content in found:
                self.store.put(record.path(file), Outgoing(file, content))
            gone = gone | (set() if before is None else set(map(before.path, before.files)))
        copies = self._catalogue.copies if copies is None else copies
        self._publish(gone, copies=list(copies), record=record)
        self._delete(self._to_delete)

    def beat(self, count: int, ended: bool = False) -> None:
        """Says that this start lives, or has ended in order; after that it says nothing more.

        May be called by several threads.
        """
        with self._beating:
            if self.mine is not None and not self._ended:
                owner.require_mine(self.store, self.mine)
                owner.write(self.store, replace(self.mine, beat=count, ended=ended))
                self._ended = ended

    def _of(self, name: str) -> list[Copy]:
        return [copy for copy in self._catalogue.copies if copy.name == name]

    def _require_mine(self) -> None:
        """Raises LostError unless this start has the copies: before anything is written or deleted."""
        assert self.mine is not None, "nothing is copied before it is claimed"
        owner.require_mine(self.store, self.mine)

    def _publish(self, gone: Set[str], **changes: Any) -> None:
        """Puts a changed catalogue in the place of the one before.

        gone: what may be deleted once it is there, and not before; nothing that it lists.
        """
        self._require_mine()
        changed = self._catalogue.model_copy(update=changes)
        to_delete = (self._to_delete | gone) - changed.paths()
        changed = changed.model_copy(update={"gone": sorted(to_delete)})
        catalogue.write(self.store, changed)
        self._catalogue, self._to_delete = changed, to_delete

    def _send_all(self, files: Sequence[tuple[str, Stored, Path]]) -> None:
        """Sends files that the store has not, some at a time. Raises the first error of one of them."""
        waiting, under_way = list(files), set[Future[None]]()
        while waiting or under_way:
            while waiting and len(under_way) < SENT_AT_ONCE:
                under_way.add(in_thread(self._sending(*waiting.pop(0))))
            done, under_way = wait(under_way, return_when="FIRST_COMPLETED")
            for future in done:
                if future.exception() is not None:
                    wait(under_way, self.store.traffic.patience.stall_seconds, FIRST_EXCEPTION)
                future.result()

    def _sending(self, name: str, file: Stored, path: Path) -> Callable[[], None]:
        def send() -> None:
            if not path.exists():
                raise FileNotFoundError(str(path))
            if self._journal.has(name, file) and self.store.head(name) == self._journal.head(name):
                return
            self._journal.add(name, file, self.store.put(name, Outgoing(file, path)))

        return send

    def _delete(self, names: Set[str]) -> None:
        """Deletes files, manifests first: the rest of a checkpoint without it is none.

        What a store does not delete stays, is noted, and is deleted with the next copy.
        """
        self.not_deleted = ""
        try:
            for name in sorted(names, key=lambda name: (not name.endswith(f"/{MANIFEST}"), name)):
                self.store.delete(name)
                self._journal.forget(name)
                self._to_delete.discard(name)
        except RequestError as error:
            self.not_deleted = str(error)


def known_of(folder: Path, run: str) -> Known:
    """What a run folder knows of its copies. run: name of the run, where it knows of none.

    Raises RunFault where that cannot be kept, UserError where it is damaged.
    """
    if (known := Known.read(folder)) is not None:
        return known
    known = Known(run, 0)
    known.write(folder)
    return known
