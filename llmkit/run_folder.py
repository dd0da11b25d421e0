"""The folder of a run: its layout, the lock against a second run, the files that hold its state.

Only one process of a run opens it, the others follow; `STOP` asks the run to stop, `SAVE` to save a
checkpoint, `DONE` says that it has finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llmkit.config.memory import show_bytes
from llmkit.errors import RunFault, UserError
from llmkit.file_lock import now
from llmkit.files import PARTIAL, may_exist, write_atomic
from llmkit.ownership.claim import Claim, Ownership, newest_generation, owner_of_generation
from llmkit.ownership.owner import Owner
from llmkit.ownership.take import take
from llmkit.stopping import restarted

LOCK = "run.lock"
STOP = "STOP"
SAVE = "SAVE"
DONE = "DONE"
HANDSHAKE = ".start-"
"""Begins the name of a folder in which all ranks of a start show that they have the same run folder."""
CONFIGS = "configs"
"""Holds the settings of every start."""


class RunFolder:
    """A run's folder, held by this process until `close`. Usable in a `with` statement.

    path: the folder; checkpoints, logs, wandb: folders in it, which exist. claim: of this start on the run;
    every method that writes raises RunFault once a later start has taken it over. outdated: files that asked
    for a stop before it was opened, and were removed.
    """

    def __init__(
        self,
        path: Path,
        claim: Claim,
        stop_files: Sequence[Path] = (),
        saved_file: Path | None = None,
    ) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.logs = path / "logs"
        self.wandb = path / "wandb"
        self.claim = claim
        self.outdated: list[Path] = []
        self._stop_files, self._saved_file = stop_files, saved_file

    @classmethod
    def open(
        cls, path: Path, command: str, stop_file: Path | None = None, saved_file: Path | None = None,
        *, environment: Mapping[str, str] | None = None, take_over: bool = False,
        note: Callable[[str], None] = print,
    ) -> RunFolder:  # fmt: skip
        """Create what is missing of the layout, become its owner, and forget earlier requests to stop.

        command: what the owner is called in the message to a second run.
        stop_file: a file that asks the run to stop, beside `STOP` in the folder.
        saved_file: a file that tells a batch script that a run which was asked to stop is saved.
        environment: in which SLURM tells of its job, and a launcher of a restart in place. take_over: another
        process that has the folder is asked to stop; if it does not in time, it has lost the run. note:
        called with what this start waits for.

        Raises UserError if another process has the folder, or nothing can be written in it.
        """
        _require_target(path.parent)
        _require_target(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            owner = Owner.of_this_process(command, environment or {})
            claim = take(
                path, owner, lock_name=LOCK, take_over=take_over,
                ask=lambda who: _ask_to_stop(path, who), note=note,
            )  # fmt: skip
        except OSError as error:
            raise UserError(f"cannot use {path.absolute()} as the run folder: {error.strerror}") from error
        folder = cls(path, claim, [path / STOP, *([stop_file] if stop_file else [])], saved_file)
        try:
            if claim.before:
                (path / STOP).unlink(missing_ok=True)  # was for the one before
            for part in (folder.checkpoints, folder.logs, folder.wandb):
                _require_target(part)
                part.mkdir(exist_ok=True)
            folder._remove_partial_files()
            if not restarted(environment or {}):  # then they may be of this launch, and are meant for it
                folder.outdated = [file for file in folder._stop_files if file.exists()]
            for file in (*folder.outdated, *([saved_file] if saved_file else [])):
                file.unlink(missing_ok=True)
        except UserError:
            folder.close()
            raise
        except OSError as error:
            folder.close()
            raise UserError(f"cannot set up the run folder: {error.filename}: {error.strerror}") from error
        return folder

    def _remove_partial_files(self) -> None:
        """Of earlier starts: should one of them go on, it can then not put its file in the place of ours."""
        for file in [*self.path.glob(f"*{PARTIAL}"), *(self.path / CONFIGS).glob(f"*{PARTIAL}")]:
            file.unlink(missing_ok=True)

    def begin_handshake(self) -> str:
        """Makes a folder with a random name beside the checkpoints, and returns the name.

        Raises UserError if that cannot be.
        """
        name = f"{HANDSHAKE}{secrets.token_hex(8)}"
        try:
            for left in self.checkpoints.glob(f"{HANDSHAKE}*"):  # of a start that was killed
                shutil.rmtree(left, ignore_errors=True)
            (self.checkpoints / name).mkdir()
        except OSError as error:
            raise UserError(_cannot_save(self.checkpoints, error)) from error
        return name

    def answer_handshake(self, handshake: str, rank: int) -> None:
        """Writes a file into the folder that rank 0 has made by `begin_handshake`.

        Raises UserError if it is not there, so that this is not rank 0's run folder, or cannot be written in.
        """
        try:
            with open(self.checkpoints / handshake / str(rank), "xb") as file:
                file.write(b"here")
                os.fsync(file.fileno())
        except FileNotFoundError as error:
            raise UserError(
                f"{self.path.absolute()} is another folder here than on rank 0: set run.dir to a folder on a "
                "disk that all nodes share, by its absolute path, or start all processes in the same folder"
            ) from error
        except OSError as error:
            raise UserError(_cannot_save(self.checkpoints, error)) from error

    def end_handshake(self, handshake: str) -> None:
        """Removes what was made by `begin_handshake`; what cannot be removed stays until the next start."""
        shutil.rmtree(self.checkpoints / handshake, ignore_errors=True)

    def close(self) -> None:
        """Let the run go; the folder may be opened again."""
        if isinstance(self.claim, Ownership):
            self.claim.release()

    @property
    def generation(self) -> int:
        """The number of this start among those of the run, from 1; the same on all ranks."""
        return self.claim.generation

    @property
    def taken_from(self) -> str:
        """The process that had the run, and was asked to stop for this start; "" where there was none."""
        return self.claim.before if isinstance(self.claim, Ownership) else ""

    @property
    def took_by_force(self) -> bool:
        """Whether that process did not stop in time."""
        return isinstance(self.claim, Ownership) and self.claim.forced

    def require_current(self) -> None:
        """Raises RunFault where a later start has taken over the run: see `Claim.require_current`."""
        self.claim.require_current()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def stop_file(self) -> Path | None:
        """The file by which somebody has asked the run to stop since it was opened; None if nobody has."""
        # On a bad disk it does not exist, which is no error.
        return next((file for file in self._stop_files if os.path.exists(file)), None)

    @property
    def is_done(self) -> bool:
        """Whether the run has reached its end."""
        return (self.path / DONE).exists()

    def mark_done(self) -> None:
        """Say that the run has reached its end."""
        self.write_text(DONE, f"{now()}\n")

    def clear_done(self) -> None:
        """Say that the run goes on after all. Raises RunFault."""
        self.require_current()
        try:
            (self.path / DONE).unlink(missing_ok=True)
        except OSError as error:
            raise RunFault(f"cannot remove {self.path / DONE}: {error.strerror}") from error

    def mark_saved(self) -> None:
        """Say, where somebody asked for it, that the run has stopped with all of its state saved."""
        if self._saved_file is not None:
            self.require_current()
            try:
                self._saved_file.touch()
            except OSError as error:
                raise RunFault(f"cannot write {self._saved_file}: {error.strerror}") from error

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder so that a reader finds the old or the new one, never a part.

        Raises RunFault if it cannot be written; the old one is then still there.
        """
        if Path(name).name != name or not name or name.startswith("."):
            raise ValueError(f"{name!r} is not the name of a file in the run folder")
        self.require_current()
        try:
            with write_atomic(self.path / name, self.require_current) as file:
                file.write(text.encode())
        except OSError as error:
            raise RunFault(f"cannot write {self.path / name}: {error.strerror}") from error

    def keep_config(self, text: str) -> str:
        """Keep the settings of a start, unless they are those of the one before.

        Returns the name of their file, such as "configs/start-0001.yaml". Raises RunFault.
        """
        self.require_current()
        kept = sorted((self.path / CONFIGS).glob("start-*.yaml"))
        try:
            if kept and kept[-1].read_text() == text:
                return f"{CONFIGS}/{kept[-1].name}"
            name = f"start-{len(kept) + 1:04d}.yaml"
            (self.path / CONFIGS).mkdir(exist_ok=True)
            with write_atomic(self.path / CONFIGS / name, self.require_current) as file:
                file.write(text.encode())
        except OSError as error:
            raise RunFault(f"cannot keep the settings in {self.path / CONFIGS}: {error.strerror}") from error
        return f"{CONFIGS}/{name}"

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """`write_text` with a JSON object, for people to read too."""
        self.write_text(name, json.dumps(content, indent=2) + "\n")

    def remove(self, name: str) -> None:
        """Remove a file of the folder, if it is there; one that cannot be removed stays."""
        self.require_current()
        with contextlib.suppress(OSError):
            (self.path / name).unlink(missing_ok=True)

    def require_space(self, needed: int) -> None:
        """Raise RunFault unless this many bytes are free where the folder is."""
        free = shutil.disk_usage(self.path).free
        if free < needed:
            where = self.path.absolute()
            raise RunFault(
                f"the disk of {where} is too full: checkpoints need {show_bytes(needed)}, free are "
                f"{show_bytes(free)}; make room, lower checkpoint.keep_last, or set run.dir to another disk"
            )


class FollowedFolder(RunFolder):
    """The folder on ranks other than 0: its paths can be used, and its methods write nothing."""

    @classmethod
    def follow(cls, path: Path, generation: int) -> FollowedFolder:
        """The folder that another process of this start has opened. generation: which it then had.

        Raises UserError if it is not there: nodes that do not share a disk cannot share a run.
        """
        folder = cls(path, Claim(path, generation))
        if not folder.checkpoints.is_dir():
            raise UserError(
                f"the run folder {path.absolute()}, which rank 0 has made, is not there: "
                "set run.dir to a folder on a disk that all nodes share"
            )
        return folder

    def clear_done(self) -> None:
        """Nothing: rank 0 does it."""

    def mark_saved(self) -> None:
        """Nothing: rank 0 does it."""

    def write_text(self, name: str, text: str) -> None:
        """Nothing: rank 0 does it."""

    def keep_config(self, text: str) -> str:
        """Nothing: rank 0 does it."""
        return ""

    def remove(self, name: str) -> None:
        """Nothing: rank 0 does it."""

    def require_space(self, needed: int) -> None:
        """Nothing: rank 0 does it."""


def run_folder_of(file: Path) -> Path | None:
    """The run folder that keeps this file of settings, of the newest start or of any; None if none does."""
    folder = file.parent.parent if file.parent.name == CONFIGS else file.parent
    return folder if file.name and os.path.lexists(folder / LOCK) else None


def _ask_to_stop(path: Path, who: str) -> None:
    with write_atomic(path / STOP) as file:
        file.write(f"{who} takes over the run\n".encode())


def _require_target(path: Path) -> None:
    """Raises UserError for a link to what is not there."""
    if os.path.islink(path) and not may_exist(path):
        raise UserError(
            f"{path} is a link to {os.readlink(path)}, which is not there; is its disk mounted? If it is "
            "gone for good, choose another run.name or run.dir"
        )


def _cannot_save(folder: Path, error: OSError) -> str:
    return (
        f"nothing can be written in {folder.absolute()}, where checkpoints go: {error.strerror or error}; "
        "mend that, or set run.dir to another folder"
    )


@contextlib.contextmanager
def borrowed(run: Path, command: str, *, advice: str, note: Callable[[str], None]) -> Iterator[Claim]:
    """The claim of `llmkit COMMAND` on a run that is not under way, so that it is not begun meanwhile.

    advice: for where it is under way, which raises UserError, as does a folder that cannot be written.
    """
    owner = Owner.of_this_process(f"llmkit {command}", os.environ)
    try:
        claim = take(run, owner, lock_name=LOCK, take_over=False, ask=note, note=note)
    except UserError as error:
        other = owner_of_generation(run, newest_generation(run))
        raise UserError(f"{command}: the run {run} is under way ({other or error}){advice}") from error
    except OSError as error:
        raise UserError(f"{command}: nothing can be written in {run}: {error.strerror or error}") from error
    try:
        yield claim
    finally:
        claim.release()
