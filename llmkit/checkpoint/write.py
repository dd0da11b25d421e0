"""Saving a checkpoint so that it is whole, or not there.

A checkpoint is built in a folder aside: every process writes its pieces there, each file synced to the
disk; when all have done so, the first process writes the manifest, renames the folder to its final name
and deletes old checkpoints. Names of folders that are not (or no longer) checkpoints:

    .tmp-step-00000100       being written
    .tmp-old-step-00000100   being deleted
    .replaced-step-00000100  whole, and valid until `step-00000100` is there again
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llmkit import __version__
from llmkit.checkpoint import format as fmt
from llmkit.checkpoint import read
from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.writer import Writer
from llmkit.errors import RunFault
from llmkit.files import sync_folder
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh

ALONE = Mesh()
_LEFTOVER = re.compile(r"\.tmp-(old-)?" + fmt.FOLDER.pattern)
_REPLACED = re.compile(re.escape(fmt.REPLACED) + f"({fmt.FOLDER.pattern})")


def save(
    root: Path,
    step: int,
    pieces: Iterable[Piece],
    *,
    state: dict[str, Any],
    model: dict[str, Any],
    config: dict[str, Any],
    extra_files: dict[str, bytes],
    keep_last: int,
    mesh: Mesh = ALONE,
    note: Callable[[str], None] = print,
) -> Path:
    """Write the checkpoint of a step into the folder `root`, then delete all but the newest.

    All processes of the mesh call it, `root` being on a disk that they share. Each gives its own
    pieces; everything else is taken from rank 0.

    pieces: all processes' together are each tensor, every element once; they may lie on any device. Up
        to `writer.FILE_BYTES` of them are kept alive at a time, which matters only if they are made as
        they are asked for.
    state: step, tokens, position in the data, ...; model, config: what the run was built from. JSON.
    extra_files: name -> content, such as tokenizer.json.
    keep_last: how many checkpoints to keep, this one included. Those of later steps (left by a run that
        went back) do not count and are not deleted.
    note: is told of older ones that cannot be deleted; this one is saved all the same.

    Returns the folder. A whole checkpoint of the same step is replaced only by a whole one.

    Raises RunFault on all processes if the disk fails or is full on one of them; what was written of
    this checkpoint is then removed, and no other is touched. Raises ValueError on the process that gave
    something that cannot be saved, or on rank 0 if a tensor is not whole.
    """
    final = root / fmt.folder_name(step)
    writer = Writer(root / f".tmp-{final.name}", mesh.rank)
    contents = _Contents(step, state, model, config, extra_files)
    explained = _explained(final, pieces, writer)
    try:
        on_rank_zero(mesh, explained(lambda: _prepare(root, writer.folder, contents, keep_last)))
        with fail_together(mesh):
            mine = explained(_write_own)(writer, pieces)
        notes = mesh.gather_text(mine)
        on_rank_zero(mesh, explained(lambda: _finish(writer, notes[1:], contents, final)))
    except BaseException:
        if mesh.rank == 0:
            shutil.rmtree(writer.folder, ignore_errors=True)
        raise
    if problem := _prune(root, final, keep_last, mesh):
        note(f"{final} is saved, but older checkpoints cannot be deleted: {problem}")
    return final


class _Contents(NamedTuple):
    """What a checkpoint holds beside its pieces; see `save`."""

    step: int
    state: dict[str, Any]
    model: dict[str, Any]
    config: dict[str, Any]
    extra_files: dict[str, bytes]


def _prepare(root: Path, temporary: Path, contents: _Contents, keep_last: int) -> str:
    """Makes the folder aside, if what is to be saved is fit for it."""
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, but at least one checkpoint must be kept")
    fmt.canonical({"state": contents.state, "model": contents.model, "config": contents.config})
    for name in contents.extra_files:
        if name == fmt.MANIFEST or not fmt.FILE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a file in a checkpoint")
    root.mkdir(parents=True, exist_ok=True)
    tidy(root)
    temporary.mkdir()
    return ""


def _write_own(writer: Writer, pieces: Iterable[Piece]) -> str:
    """Writes the pieces of this process; returns what the manifest must list."""
    if not writer.folder.is_dir():
        raise RunFault(f"{writer.folder} is not there, though rank 0 has made it: is its disk still mounted?")
    writer.write_pieces(pieces)
    if writer.rank == 0:  # which syncs the folder when all is in it
        return ""
    sync_folder(writer.folder)
    return writer.notes()


def _finish(writer: Writer, notes: Sequence[str], contents: _Contents, final: Path) -> str:
    """Writes what rank 0 alone writes, the manifest last, and gives the folder its name."""
    for text in notes:
        writer.add(text)
    check_complete(writer.pieces)
    for name, content in contents.extra_files.items():
        writer.write_bytes(name, content)
    writer.write_bytes(fmt.MANIFEST, _manifest(writer, contents).encode())
    sync_folder(writer.folder)
    read.load(writer.folder)
    _commit(writer.folder, final)
    return ""


def _manifest(writer: Writer, contents: _Contents) -> fmt.Manifest:
    """Lists all that was written."""
    tokenizer = contents.extra_files.get(fmt.TOKENIZER)
    return fmt.Manifest(
        format="llmkit-checkpoint",
        version=1,
        block=4194304,
        step=contents.step,
        versions={"llmkit": __version__, "torch": str(torch.__version__)},
        tokenizer_sha256=None if tokenizer is None else hashlib.sha256(tokenizer).hexdigest(),
        model=contents.model,
        config=contents.config,
        state=contents.state,
        files=list(writer.files),
        pieces=writer.pieces,
    )


@contextmanager
def _explained(final: Path, pieces: Iterable[Piece], writer: Writer) -> Iterator[None]:
    """Turns an OSError into a RunFault that says what could not be saved, and why."""
    try:
        yield
    except OSError as error:
        writer.discard()
        raise RunFault(_explain(error, final, pieces, writer.written)) from error


def tidy(root: Path) -> None:
    """Clear away what an interrupted save left in `root`. Only for the one process that saves there.

    What cannot be deleted stays, as where a reader has a file open on NFS. Raises OSError.
    """
    for path in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:  # .tmp-old- before .replaced-
        if replaced := _REPLACED.fullmatch(path.name):
            if os.path.lexists(root / replaced[1]):
                _delete(path)
            else:
                path.rename(root / replaced[1])
        elif _LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                _remove(path)


def _commit(temporary: Path, final: Path) -> None:
    """Give a finished folder its name; at every moment the old or the new one can be found."""
    if not os.path.lexists(final):
        temporary.rename(final)
    else:
        replaced = final.with_name(fmt.REPLACED + final.name)
        final.rename(replaced)
        try:
            temporary.rename(final)
        except OSError:
            replaced.rename(final)
            raise
    sync_folder(final.parent)


def _prune(root: Path, newest: Path, keep_last: int, mesh: Mesh) -> str:
    """Delete all but `keep_last` of the checkpoints up to `newest`, once that one is known to be good.

    Every process checks its share of it: to read back all would keep one of them busy for long. Returns why
    some of them cannot be deleted; "" = they are. Raises RunFault if the new one is bad, or cannot be found.
    """

    def doomed() -> list[Path]:
        older = sorted(p for p in root.iterdir() if fmt.FOLDER.fullmatch(p.name) and p.name < newest.name)
        replaced = newest.with_name(fmt.REPLACED + newest.name)
        return older[: max(0, len(older) - (keep_last - 1))] + [replaced] * os.path.lexists(replaced)

    def count() -> str:
        try:
            return str(len(doomed()) or "")
        except OSError as error:
            raise RunFault(
                f"{root}, where {newest.name} was saved, cannot be read any more: {error}"
            ) from error

    def delete() -> str:
        try:
            for path in doomed():
                _delete(path)
        except OSError as error:
            return str(error)
        return ""

    if not on_rank_zero(mesh, count):
        return ""
    with fail_together(mesh):
        if problems := read.verify(newest, mesh.rank, mesh.world_size):
            raise RunFault(f"the checkpoint just written is bad, older ones are kept: {problems[0]}")
    return on_rank_zero(mesh, delete)


def _delete(path: Path) -> None:
    """Take a checkpoint out of sight at once, then delete it: half of one is never seen."""
    aside = path.with_name(f".tmp-old-{path.name.removeprefix(fmt.REPLACED)}")
    path.rename(aside)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _explain(error: OSError, final: Path, pieces: Iterable[Piece], written: int) -> str:
    """Why a save failed, with the bytes it needs and the bytes that are free."""
    if isinstance(pieces, Sequence):
        needed = f"it needs {sum(piece.data.nbytes for piece in pieces)} bytes, "
    else:
        needed = f"it needs more than the {written} bytes that could be written, " if written else ""
    try:
        free = f"{shutil.disk_usage(final.parent).free} are free"
    except OSError:
        free = "the folder cannot be reached"
    return f"cannot save checkpoint {final}: {error.strerror or error} ({needed}{free})"
