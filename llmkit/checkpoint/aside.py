"""A folder that is built aside and gets its name when all is in it."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmkit.checkpoint.writer import ASIDE
from llmkit.errors import RunFault, UserError
from llmkit.files import sync_folder


@contextlib.contextmanager
def built_aside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, which becomes `out` at the end; where anything is raised it is deleted.

    What an interrupted attempt has left there is deleted first. Raises UserError where there is something at
    `out` already, RunFault where the disk fails or is full.
    """
    refuse_existing(out)
    aside = out.with_name(f"{ASIDE}{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        sync_folder(aside)
        refuse_existing(out)
        aside.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        where = error.filename or aside
        raise RunFault(f"cannot write {out}: {where}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raises UserError where there is something at a path."""
    if os.path.lexists(out):
        raise UserError(f"{out}: is there already; name a folder that does not exist")


def require_room(out: Path, needed: int) -> None:
    """Raises UserError where the disk of a folder to be has less than `needed` bytes free."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"{out}: it needs {needed / 1e9:.2f} GB, and the disk of {there} has {free / 1e9:.2f} GB free; "
            "name a folder on another disk"
        )
