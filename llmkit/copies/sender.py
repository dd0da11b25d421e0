"""Copying checkpoints of a run to a store, each once, and the record of the run with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import replace
from pathlib import Path

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
        self._publish(replace_copies(self._catalogue, [*others, new]))
        with held(self._folder / "checkpoints" / name, [file.name for file in files]) as folder:
            self._send_all(
                [(new.path(file), file, folder / file.name) for file in files if file.name != MANIFEST]
            )
            self._send_all(
                [(new.path(file), file, folder / file.name) for file in files if file.name == MANIFEST]
            )
        done = new.model_copy(update={"complete": True})
        steps = [copy.step for copy in [*others, done] if copy.complete and copy.step <= done.step]
        kept = keeps(sorted(steps)) | {done.step}
        # Copies of later steps are of a run that has gone back since; incomplete ones were given up.
        staying = [copy for copy in others if copy.complete and copy.step in kept and copy.step <= done.step]
        gone = [copy for copy in others if copy not in staying]
        self.keep_record(replace_copies(self._catalogue, [*staying, done]))
        for copy in gone:
            self._delete(
                copy.path(file) for file in sorted(copy.files, key=lambda each: each.name != MANIFEST)
            )
        now_there = {file.name for file in files}
        self._delete(old.path(file) for old in before for file in old.files if file.name not in now_there)
        self._journal.tidy()
        return self._journal.bytes_sent - sent

    def keep_record(self, changed: Catalogue | None = None) -> None:
        """Copies the record of the run as it is now, and publishes the catalogue with it.

        changed: the catalogue that is published. What was there before is deleted afterwards.
        """
        changed, before = changed or self._catalogue, self._catalogue.record
        contents = snapshot(self._folder)
        files = [file for file, _ in contents]
        if before is not None and before.files == files:
            if changed is not self._catalogue:
                self._publish(changed)
            return
        record = Record(number=0 if before is None else before.number + 1, files=files)
        for file, content in contents:
            self.store.put(record.path(file), Outgoing(file, content))
        self._publish(changed.model_copy(update={"record": record}))
        if before is not None:
            self._delete(before.path(file) for file in before.files)

    def beat(self, count: int, ended: bool = False) -> None:
        """Says that this start lives, or has ended in order."""
        if self.mine is not None:
            owner.require_mine(self.store, self.mine)
            said = replace(self.mine, beat=count, ended=ended)
            owner.write(self.store, said)

    def _of(self, name: str) -> list[Copy]:
        return [copy for copy in self._catalogue.copies if copy.name == name]

    def _publish(self, changed: Catalogue) -> None:
        assert self.mine is not None, "nothing is copied before it is claimed"
        owner.require_mine(self.store, self.mine)
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


def replace_copies(old: Catalogue, copies: list[Copy]) -> Catalogue:
    """A catalogue with other copies in it."""
    return old.model_copy(update={"copies": copies})


def known_of(folder: Path, run: str) -> Known:
    """What a run folder knows of its copies. run: name of the run, where it knows of none.

    Raises RunFault where that cannot be kept, UserError where it is damaged.
    """
    if (known := Known.read(folder)) is not None:
        return known
    known = Known(run, 0)
    known.write(folder)
    return known
