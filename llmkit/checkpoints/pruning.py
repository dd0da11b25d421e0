"""`llmkit checkpoint prune`: deletes old checkpoints of a run that is not under way."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmkit.checkpoint.commit import delete_checkpoint
from llmkit.checkpoint.files import OpenFiles
from llmkit.checkpoint.keeping import read_best, step_of
from llmkit.checkpoint.read import Damaged, folders, load
from llmkit.checkpoint.rule import is_kept
from llmkit.checkpoints.found import Found, find
from llmkit.command_line import print_json, printer, to_stderr
from llmkit.config.memory import show_bytes
from llmkit.errors import RunFault, UserError
from llmkit.ownership.claim import Claim
from llmkit.run_folder import borrowed


def prune_command(
    path: Path, keep_last: int | None, keep_every: int | None, *, dry_run: bool, yes: bool,
    as_json: bool = False,
) -> int:  # fmt: skip
    """Deletes the checkpoints before the newest `keep_last` good ones (1 if only the other is given), but for
    those whose step `keep_every` divides, and for the best one.

    Asks first on a terminal, unless `yes`. as_json: one object at the end instead of lines.

    Raises UserError where the run is under way, or nothing says what to keep; RunFault where no checkpoint is
    good.
    """
    if keep_last is None and keep_every is None:
        raise UserError("prune: say what to keep, by --keep-last N or --keep-every N")
    found = find(path)
    if found.single:
        raise UserError(f"prune: {path} is one checkpoint; name its run folder")
    if as_json and not (yes or dry_run) and sys.stdin.isatty():
        raise UserError("prune: with --json nothing is asked; say --yes to delete, or --dry-run")
    if dry_run:
        to_delete = choose(found.root, keep_last or 1, keep_every)
        if as_json:
            _print_json(to_delete, sum(map(_size, to_delete)), dry_run)
            return 0
        print("\n".join(f"would delete {folder}" for folder in to_delete) or "nothing would be deleted")
        return 0
    with _claimed(found) as claim:
        to_delete = choose(found.root, keep_last or 1, keep_every)
        if to_delete and not yes and sys.stdin.isatty() and not _agreed(to_delete):
            print("nothing is deleted")
            return 0
        tell = printer(as_json)
        freed = sum(_delete(folder, claim, tell) for folder in to_delete)
    if as_json:
        _print_json(to_delete, freed, dry_run)
        return 0
    print(f"{len(to_delete)} deleted, {show_bytes(freed)} freed" if to_delete else "nothing to delete")
    return 0


def choose(root: Path, keep_last: int, keep_every: int | None) -> list[Path]:
    """The checkpoints in `root` that are to be deleted, the oldest first.

    All of them are older than the newest `keep_last` good ones, of which everything was read. What is damaged
    among these is left, and so is the best one. Raises RunFault where none is good, or it is not known which
    one is the best.
    """
    named, kept = read_best(root), 0
    best = None if named is None else named.step
    to_delete: list[Path] = []
    for folder in reversed(folders(root)):
        if kept < keep_last:
            if problem := _damage(folder):
                to_stderr(f"{folder.name} is damaged, and left as it is: {problem}")
            else:
                kept += 1
        elif not is_kept(step_of(folder), keep_every or 0, best):
            to_delete.append(folder)
    if not kept:
        raise RunFault(f"prune: no checkpoint in {root} is good; nothing is deleted")
    return to_delete[::-1]


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint, of which all is read; "" for a good one."""
    try:
        return next(load(folder, OpenFiles()).problems(), "")
    except Damaged as error:
        return str(error)


@contextmanager
def _claimed(found: Found) -> Iterator[Claim | None]:
    """The checkpoints are this process's own until the end: a run that begins meanwhile is refused.

    Raises UserError where the run is under way.
    """
    if found.run is None:
        yield None
        return
    advice = (
        ", and deletes its own old checkpoints by checkpoint.keep_last; wait for it, or stop it first"
    )
    with borrowed(found.run, "checkpoint prune", advice=advice, note=to_stderr) as claim:
        yield claim


def _agreed(to_delete: list[Path]) -> bool:
    print("".join(f"{folder}\n" for folder in to_delete), end="")
    return input(f"delete these {len(to_delete)} checkpoints? [y/N] ").strip().lower() in ("y", "yes")


def _print_json(deleted: list[Path], size: int, dry_run: bool) -> None:
    print_json({"dry_run": dry_run, "deleted": [str(folder) for folder in deleted], "freed_bytes": size})


def _size(folder: Path) -> int:
    """Bytes that the files of a checkpoint take; of a link none, nor of what has gone meanwhile.

    Raises RunFault for a folder that cannot be read.
    """
    try:
        files = () if folder.is_symlink() else folder.iterdir()
        return sum(file.lstat().st_size for file in files)
    except FileNotFoundError:  # without a claim, the run may delete it first
        return 0
    except OSError as error:
        raise RunFault(f"prune: {folder} cannot be read: {error.strerror or error}") from error


def _delete(folder: Path, claim: Claim | None, tell: Callable[[str], None]) -> int:
    """Deletes a checkpoint; how many bytes that frees: of a link none."""
    if claim is not None:
        claim.require_current()
    size = _size(folder)
    try:
        delete_checkpoint(folder)
    except OSError as error:
        raise RunFault(f"prune: {folder} cannot be deleted: {error.strerror or error}") from error
    tell(f"deleted {folder}")
    return size
