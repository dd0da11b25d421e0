"""Saving a checkpoint in three steps: `stage`, `write`, `commit`.

A checkpoint is built in a folder aside, `.tmp-7-step-00000100`: every process writes its pieces there, each
file synced to the disk (`write`); when all have done so, rank 0 writes the index and the manifest and gives
the folder its name (`commit`). Only `stage` needs the engine to stand still: with a copied snapshot the
other two can go on in the background, on their own process group.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.commit import commit, tidy
from llmkit.checkpoint.keeping import Keep
from llmkit.checkpoint.pieces import Piece
from llmkit.checkpoint.read import ALONE
from llmkit.checkpoint.stage import Snapshot, stage
from llmkit.checkpoint.writer import Writer
from llmkit.errors import RunFault
from llmkit.files import sync_folder
from llmkit.ownership.claim import Claim
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh


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
    keep_every: int = 0,
    mesh: Mesh = ALONE,
    note: Callable[[str], None] = print,
    claim: Claim | None = None,
) -> Path:
    """Save the checkpoint of a step in the folder `root`, then delete old ones. Returns its folder.

    All processes of the mesh call it, `root` being on a disk that they share. A complete checkpoint of
    the same step is replaced only by a complete one.

    step, pieces, state, model, config, extra_files: see `stage.Snapshot`.
    keep_last: how many checkpoints to keep, this one included. Those of later steps (left by a run that
        went back) do not count and are not deleted, nor is the one that `keeping.read_best` names.
    keep_every: those of steps that it divides are kept, too; 0 = none of them.
    note: called with a message where older ones cannot be deleted; this one is saved all the same.
    claim: of the start of the run that saves; one that has lost the run publishes and deletes nothing.

    Raises RunFault on all processes if the disk fails or is full on one of them; what was written of
    this checkpoint is then removed, and no other is touched. Raises ValueError on the process that gave
    something that cannot be saved, or on rank 0 if a tensor is incomplete.
    """
    snapshot = stage(Snapshot(step, pieces, state, model, config, extra_files), memory=None)
    mesh = mesh.for_saving()
    keep = Keep(keep_last, keep_every)
    return write_and_commit(root, snapshot, keep=keep, mesh=mesh, note=note, claim=claim)


def write_and_commit(
    root: Path, snapshot: Snapshot, *, keep: Keep, mesh: Mesh, note: Callable[[str], None],
    claim: Claim | None,
) -> Path:  # fmt: skip
    """Writes and commits a staged snapshot: all of `save` that may go on beside training, in a thread.

    mesh: one whose small messages nothing else uses meanwhile (`Mesh.for_saving`).
    """
    return commit(write(root, snapshot, mesh, claim), snapshot, keep, mesh, note, claim)


def write(root: Path, snapshot: Snapshot, mesh: Mesh, claim: Claim | None = None) -> Writer:
    """Writes this rank's pieces into a folder aside; all processes call it. Raises as `save` does.

    Up to `writer.FILE_BYTES` of the pieces are kept alive at a time, which matters only if they are made as
    they are asked for.
    """
    writer = Writer(root / fmt.folder_name(snapshot.step), mesh.rank, claim.generation if claim else 0)

    def prepare() -> str:
        if claim is not None:
            claim.require_current()
        with writer.explained(snapshot.pieces):
            _prepare(root, writer.folder, snapshot)
        return ""

    try:
        on_rank_zero(mesh, prepare)
        with fail_together(mesh), writer.explained(snapshot.pieces):
            if not writer.folder.is_dir():
                raise RunFault(
                    f"{writer.folder} is not there, though rank 0 has made it: is its disk still mounted?"
                )
            writer.write_pieces(snapshot.pieces)
            if mesh.rank > 0:  # rank 0 syncs the folder when all is in it
                sync_folder(writer.folder)
    except BaseException:
        if mesh.rank == 0:
            shutil.rmtree(writer.folder, ignore_errors=True)
        raise
    return writer


def _prepare(root: Path, aside: Path, snapshot: Snapshot) -> None:
    """Checks what is to be saved, and makes the folder aside."""
    fmt.canonical({"state": snapshot.state, "model": snapshot.model, "config": snapshot.config})
    for name in snapshot.extra_files:
        if name in (fmt.MANIFEST, fmt.INDEX) or not fmt.FILE_NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of a file in a checkpoint")
    root.mkdir(exist_ok=True)  # its parent is the run folder: where that has gone, the disk has
    tidy(root)
    aside.mkdir()
