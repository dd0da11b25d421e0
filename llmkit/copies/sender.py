"""Copying checkpoints of a run to a store, each once, and the record of the run with them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from llmkit.copies import catalogue, owner
from llmkit.copies.catalogue import MANIFEST, Catalogue, Copy, Record
from llmkit.copies.held import held
from llmkit.copies.journal import Journal
from llmkit.copies.outgoing import Outgoing, Stored
from llmkit.copies.owner import CopyOwner, Known
from llmkit.copies.record import snapshot
from llmkit.copies.store import Store
from llmkit.data.sources.attempts import FailedError, in_thread

SENT_AT_ONCE = 4
"""Files."""
Keeps = Callable[[Sequence[int]], set[int]]
"""Which of the steps of complete copies, in ascending order, are kept."""


class Sender:
    """Copies of one run beneath one URL.

    folder: the run folder. known: what it knows of its copies. command: names this start in messages.

    Its methods raise FailedError where the store does not do as it should, LostError where another start has
    the copies, RunFault where the run folder cannot be read.
    """

    def __init__(self, store: Store, folder: Path, known: Known, command: str) -> None:
        self.store, self._folder, self._known, self._command = store, folder, known, command
        self.mine: CopyOwner | None = None
        self._beating, self._ended = threading.Lock(), False
        self.not_deleted = ""
        """Why the store has not deleted what was to be deleted, the last time."""
        self._catalogue = Catalogue(run=known.run)
        self._journal = Journal(folder / "copies" / "sent.jsonl", str(store))

    def claim(self) -> None:
        """Takes the copies for this start. A second call does nothing."""
        if self.mine is not None:
            return
        found = owner.read(self.store)
        mine = owner.claimed(found, self._known.run, self._known.start, self._command, self.store)
        there = catalogue.read(self.store)
        if there is not None and there.run != self._known.run:
            raise owner.LostError(f"{self.store} holds the copies of another run ({there.run})")
        owner.write(self.store, mine)
        Known(mine.run, mine.start).write(self._folder)
        self._catalogue = there or self._catalogue
        self.mine = mine

    def copy(self, name: str, files: Sequence[Stored], keeps: Keeps) -> int:
        """Copies a checkpoint, unless that was done, and the record as it is now; then deletes what is not to
        be kept. Returns the bytes that were sent.

        name: of its folder in `checkpoints`. files: all of it, the manifest too. Raises FileNotFoundError
        where the checkpoint has been deleted.
        """
        new = Copy(name=name, complete=False, files=list(files))
        if any(copy.complete and copy.files == new.files for copy in self._of(name)):
            self.keep_record()
            return 0
        before, sent = self._of(name), self._journal.bytes_sent
        others = [copy for copy in self._catalogue.copies if copy.name != name]
        self._delete(self._catalogue.gone)  # which a start before has not come to
        self._publish(copies=[*others, new], gone=[])
        with held(self._folder / "checkpoints" / name, [file.name for file in files]) as folder:
            for last in (False, True):  # the manifest comes last, here as there
                now = [file for file in files if (file.name == MANIFEST) is last]
                self._send_all([(new.path(file), file, folder / file.name) for file in now])
        done = new.model_copy(update={"complete": True})
        steps = [copy.step for copy in [*others, done] if copy.complete and copy.step <= done.step]
        kept = keeps(sorted(steps)) | {done.step}
        # Copies of later steps are of a run that has gone back since; incomplete ones were given up.
        staying = [copy for copy in others if copy.complete and copy.step in kept and copy.step <= done.step]
        going = [copy for copy in others if copy not in staying]
        gone = {copy.path(file) for copy in [*going, *before] for file in copy.files}
        gone -= {done.path(file) for file in files}
        self.keep_record([*staying, done], sorted(gone))
        self._journal.tidy()
        return self._journal.bytes_sent - sent

    def keep_record(self, copies: Sequence[Copy] | None = None, gone: Sequence[str] = ()) -> None:
        """Copies the record of the run as it is now, and publishes the catalogue with it.

        copies: those that there are now; by default those of before. gone: files that are deleted then,
        beside the record of before.
        """
        found, before = snapshot(self._folder), self._catalogue.record
        record = Record(number=0 if before is None else before.number + 1, files=[file for file, _ in found])
        if before is not None and before.files == record.files:
            if copies is None:
                return
            record = before
        else:
            for file, content in found:
                self.store.put(record.path(file), Outgoing(file, content))
            gone = [*gone, *([] if before is None else map(before.path, before.files))]
        copies = self._catalogue.copies if copies is None else copies
        self._publish(copies=list(copies), record=record, gone=list(gone))
        self._delete(gone)

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

    def _publish(self, **changes: Any) -> None:
        """Puts a changed catalogue in the place of the one before."""
        assert self.mine is not None, "nothing is copied before it is claimed"
        owner.require_mine(self.store, self.mine)
        changed = self._catalogue.model_copy(update=changes)
        catalogue.write(self.store, changed)
        self._catalogue = changed

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

    def _delete(self, names: Iterable[str]) -> None:
        """Deletes files; what a store does not delete stays there, and is noted."""
        try:
            for name in names:
                self.store.delete(name)
                self._journal.forget(name)
        except FailedError as error:
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
