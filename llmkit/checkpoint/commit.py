"""Last step of a save: the folder aside becomes a checkpoint, and older ones are deleted.

Names of folders that are not (or no longer) checkpoints:

    .tmp-7-step-00000100     being written by generation 7 of the run
    .tmp-old-step-00000100   being deleted
    .replaced-step-00000100  the checkpoint until `step-00000100` is there again
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from llmkit import __version__
from llmkit.checkpoint import format as fmt
from llmkit.checkpoint import index_file, read
from llmkit.checkpoint.completeness import check_complete
from llmkit.checkpoint.index import merge
from llmkit.checkpoint.keeping import Keep, superfluous
from llmkit.checkpoint.stage import Snapshot
from llmkit.checkpoint.writer import Writer
from llmkit.errors import RunFault
from llmkit.files import sync_folder
from llmkit.ownership.claim import Claim
from llmkit.parallel.agreement import fail_together, on_rank_zero
from llmkit.parallel.mesh import Mesh

_LEFTOVER = re.compile(r"\.tmp-(old-|\d+-)?" + fmt.FOLDER.pattern)
_REPLACED = re.compile(re.escape(fmt.REPLACED) + f"({fmt.FOLDER.pattern})")


def commit(
    writer: Writer, snapshot: Snapshot, keep: Keep, mesh: Mesh, note: Callable[[str], None],
    claim: Claim | None = None,
) -> Path:  # fmt: skip
    """Turns what all ranks have written into a checkpoint, then deletes old ones. Collective. Returns its
    folder.

    The last step of `write.save`, where arguments and errors are described.
    """
    root, final = writer.final.parent, writer.final
    require_current = claim.require_current if claim is not None else lambda: None

    def publish() -> str:
        if keep.last < 1:
            raise ValueError(f"keep_last is {keep.last}, but at least one checkpoint must be kept")
        with writer.explained(snapshot.pieces):
            finish(writer, parts, snapshot)
            require_current()
            _rename(writer.folder, final)
        return ""

    try:
        with fail_together(mesh):
            mine = index_file.encode(writer.index())
        parts = mesh.gather_bytes(mine)
        on_rank_zero(mesh, publish)
    except BaseException:
        if mesh.rank == 0:
            shutil.rmtree(writer.folder, ignore_errors=True)
        raise
    if problem := _prune(root, final, keep, mesh, require_current):
        note(f"{final} is saved, but older checkpoints cannot be deleted: {problem}")
    return final


def finish(writer: Writer, parts: list[bytes], snapshot: Snapshot) -> None:
    """Writes the index, the extra files and, last, the manifest: on rank 0. parts: each rank's encoded index.

    Raises ValueError unless the ranks' pieces cover every tensor exactly once.
    """
    merged = merge([index_file.decode(part) for part in parts])
    check_complete(merged)
    files = [writer.write_bytes(name, content).entry() for name, content in snapshot.extra_files.items()]
    tokenizer = snapshot.extra_files.get(fmt.TOKENIZER)
    manifest = fmt.Manifest(
        format="llmkit-checkpoint",
        version=2,
        block=4194304,
        step=snapshot.step,
        versions={"llmkit": __version__, "torch": str(torch.__version__)},
        tokenizer_sha256=None if tokenizer is None else hashlib.sha256(tokenizer).hexdigest(),
        model=snapshot.model,
        config=snapshot.config,
        state=snapshot.state,
        files=files,
        index=writer.write_bytes(fmt.INDEX, index_file.encode(merged)).entry(),
    )
    writer.write_bytes(fmt.MANIFEST, manifest.encode())
    sync_folder(writer.folder)
    read.load(writer.folder).check_sizes()


def tidy(root: Path) -> None:
    """Remove what an interrupted save left in `root`. Only for the one process that saves there.

    A start of a run calls it before it looks for checkpoints: what an earlier start still writes, should it
    go on, can then not become one. What cannot be deleted stays, as where a reader has a file open on NFS.
    Raises OSError.
    """
    for path in sorted(root.iterdir(), reverse=True) if root.is_dir() else []:  # .tmp-old- before .replaced-
        if replaced := _REPLACED.fullmatch(path.name):
            if os.path.lexists(root / replaced[1]):
                delete_checkpoint(path)
            else:
                path.rename(root / replaced[1])
        elif _LEFTOVER.fullmatch(path.name):
            with suppress(OSError):
                # Given its name in the midst of this, it would be a checkpoint of which files are missing.
                delete_checkpoint(path)


def _rename(temporary: Path, final: Path) -> None:
    """Rename a finished folder; at every moment either the old or the new checkpoint can be found."""
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


def _prune(
    root: Path, newest: Path, keep: Keep, mesh: Mesh, require_current: Callable[[], None]
) -> str:
    """Delete all but those to keep of the checkpoints up to `newest`, once that one is verified. Collective.

    Every process verifies a share of it. Returns why some of them cannot be deleted; "" if they are. Raises
    RunFault if the new one is damaged or cannot be found.
    """

    def to_delete() -> list[Path]:
        older = sorted(p for p in root.iterdir() if fmt.FOLDER.fullmatch(p.name) and p.name < newest.name)
        replaced = newest.with_name(fmt.REPLACED + newest.name)
        return superfluous(root, older, keep) + [replaced] * os.path.lexists(replaced)

    def count() -> str:
        try:
            return str(len(to_delete()) or "")
        except OSError as error:
            raise RunFault(
                f"{root}, where {newest.name} was saved, cannot be read any more: {error}"
            ) from error
        except fmt.Damaged as error:
            return str(error)

    def delete() -> str:
        try:
            for path in to_delete():
                require_current()
                delete_checkpoint(path)
        except (OSError, fmt.Damaged) as error:
            return str(error)
        return ""

    if not on_rank_zero(mesh, count):
        return ""
    with fail_together(mesh):
        if problems := read.verify(newest, mesh.rank, mesh.world_size):
            raise RunFault(f"the checkpoint just written is bad, older ones are kept: {problems[0]}")
    return on_rank_zero(mesh, delete)


def delete_checkpoint(path: Path) -> None:
    """Rename a checkpoint, or what may become one, then delete it: a part of it is no checkpoint.

    Of a link the link alone. Raises OSError.
    """
    aside = path.with_name(".tmp-old-" + path.name[path.name.index("step-") :])
    path.rename(aside)
    _remove(aside)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
