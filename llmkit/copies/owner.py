"""Which start of a run copies to a URL.

Stores know no locks. A start that wants to copy notes in its run folder that it claims the copies, writes
`owner.json` with a number one higher than that of the start before, and reads it back; it goes on to write it
with a counter, by which others see that it lives. Before it writes or deletes anything else, and with each
beat, it looks whether another start has written its own: then it copies nothing more. Of two starts that
claim within the same moment the one that has written last has the copies; the other one sees that before it
has written anything else, or with the next beat.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkit.copies.outgoing import Outgoing, stored
from llmkit.copies.store import Store
from llmkit.errors import RunFault, UserError
from llmkit.files import sync_folder, write_json
from llmkit.ownership.owner import Owner

NAME = "owner.json"
BEAT_SECONDS = 30.0
"""How often an owner increases its counter."""
SILENT_SECONDS = 90.0
"""An owner whose counter has not changed for so long is taken for dead."""


class LostError(UserError):
    """Another start has the copies."""


@dataclass(frozen=True)
class CopyOwner:
    """What `owner.json` says. run: see `Catalogue`. start: number of the start. beat: its counter. ended:
    whether it has ended in order."""

    run: str
    start: int
    owner: Owner
    beat: int = 0
    ended: bool = False

    def is_same(self, other: CopyOwner) -> bool:
        """Whether both are the same start of the same run."""
        return (self.run, self.start, self.owner) == (other.run, other.start, other.owner)


def read(store: Store) -> CopyOwner | None:
    """Who has the copies; None where nobody has had them. Raises RequestError, UserError."""
    raw = store.text(NAME)
    if raw is None:
        return None
    try:
        content: Any = json.loads(raw)
        owner = Owner.from_json(content["owner"])
        values = {name: content[name] for name in ("run", "start", "beat", "ended")}
        if owner is None or [type(value) for value in values.values()] != [str, int, int, bool]:
            raise ValueError
        return CopyOwner(owner=owner, **values)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{store}/{NAME}: is not as this llmkit writes it; use the version that wrote it, or another "
            "checkpoint.copy_to; if it is damaged, delete it once no run copies there any more"
        ) from None


def write(store: Store, mine: CopyOwner) -> None:
    """Says who has the copies. Raises RequestError."""
    content = {
        "run": mine.run, "start": mine.start, "owner": mine.owner.to_json(), "beat": mine.beat,
        "ended": mine.ended,
    }  # fmt: skip
    raw = json.dumps(content).encode()
    store.put(NAME, Outgoing(stored(NAME, raw), raw), is_progress=False)


def require_mine(store: Store, mine: CopyOwner) -> None:
    """Raises LostError where another start has the copies, RequestError where that cannot be seen."""
    found = read(store)
    if found is None or not found.is_same(mine):
        by = "nobody, as somebody has deleted them" if found is None else str(found.owner)
        raise LostError(f"{store} is now of {by}: this start copies nothing more there")


def require_free(
    store: Store, found: CopyOwner, environment: Mapping[str, str], note: Callable[[str], None],
    sleep: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic,
) -> None:  # fmt: skip
    """Raises UserError where the start that has the copies is alive: another folder has the run then.

    Where only its counter tells, this takes SILENT_SECONDS; note: called with why this start waits. Raises
    RequestError where the store does not answer.
    """
    alive = found.owner.runs_here()
    if found.ended or alive is False or Owner.of_this_process("", environment).succeeds(found.owner):
        return
    until = clock() + SILENT_SECONDS
    if alive is None:
        note(f"{store} is of {found.owner}; looking for {SILENT_SECONDS:.0f} s whether it is alive")
    while alive is None and clock() < until:
        sleep(5.0)
        now = read(store)
        if now is None or now.ended:
            return
        alive = True if now != found else None
    if alive:
        raise UserError(
            f"{store} gets the copies of this run from {found.owner}, which is alive, in another run folder: "
            "stop that one first, or choose another run.name or checkpoint.copy_to"
        )


def claimed(found: CopyOwner | None, known: Known, command: str, store: Store) -> CopyOwner:
    """The claim of this start, to be written. found: who has the copies. known: what this run folder knows.

    Raises LostError where they are of another run, or of a start that this run folder does not know.
    """
    if found is not None and found.run != known.run:
        raise LostError(
            f"{store} holds the copies of another run, last of {found.owner}: choose another "
            "checkpoint.copy_to or run.name"
        )
    if found is not None and not known.covers(found):
        raise LostError(
            f"{store} holds copies of a later start of this run than this folder knows of, {found.owner}: "
            "move this run folder away to go on from there"
        )
    start = known.start if found is None else found.start
    return CopyOwner(known.run, start + 1, Owner.of_this_process(command, os.environ))


@dataclass(frozen=True)
class Known:
    """What a run folder knows of its copies, in `copies/state.json`. run: random name of the run. start: the
    newest start that is known to claim them, or to have claimed them. owner: of that start; None where it is
    not known. is_copy: the folder is a copy of the one that has claimed them (by its inode), as `cp -r` makes
    it: that one may still be at work."""

    run: str
    start: int
    owner: Owner | None = None
    is_copy: bool = False

    def covers(self, found: CopyOwner) -> bool:
        """Whether a start of the same run is known here: no other run folder has gone on since.

        Two that claim in the same moment take the same number; the owner tells them apart.
        """
        same = found.start == self.start and self.owner in (None, found.owner)
        return found.start < self.start or same

    @classmethod
    def read(cls, folder: Path) -> Known | None:
        """From a run folder; None where it knows of none. Raises UserError where the file is damaged."""
        path = folder / "copies" / "state.json"
        try:
            content = json.loads(path.read_bytes())
            owner = content.get("owner")
            inode = os.stat(path.parent).st_ino
            found = cls(
                content["run"], content["start"], None if owner is None else Owner.from_json(owner),
                is_copy=content.get("folder", inode) != inode,
            )  # fmt: skip
            if type(found.run) is str and type(found.start) is int:
                return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass
        raise UserError(f"{path}: is damaged; delete it where nothing was copied yet, else bring it back")

    def write(self, folder: Path) -> None:
        """Into a run folder. Raises RunFault."""
        owner = None if self.owner is None else self.owner.to_json()
        try:
            (folder / "copies").mkdir(parents=True, exist_ok=True)
            inode = os.stat(folder / "copies").st_ino
            content = {"run": self.run, "start": self.start, "owner": owner, "folder": inode}
            write_json(folder / "copies" / "state.json", content)
            sync_folder(folder / "copies")
        except OSError as error:
            raise RunFault(f"cannot write {folder / 'copies'}: {error.strerror}") from error
