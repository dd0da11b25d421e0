"""A checkpoint that stays readable while it is copied, also where the run deletes it meanwhile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".copying-"
"""Before the name of a checkpoint: a folder beside it with links to its files."""


@contextmanager
def held(folder: Path, names: list[str]) -> Iterator[Path]:
    """The folder to read a checkpoint from: hard links to its files, or where there can be none itself.

    Removes what a copy has left that was killed. names: of its files. Raises FileNotFoundError where the
    checkpoint is not there any more.
    """
    links = folder.with_name(PREFIX + folder.name)
    forget(folder.parent)
    source = links
    try:
        try:
            links.mkdir()
            for name in names:
                os.link(folder / name, links / name, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:  # of a file system without hard links, or that may not be written to
            source = folder
        yield source
    finally:
        shutil.rmtree(links, ignore_errors=True)


def forget(root: Path) -> None:
    """Removes the links that a copy has left which was killed. root: the folder of the checkpoints."""
    with suppress(OSError):
        for left in root.glob(f"{PREFIX}step-*"):
            shutil.rmtree(left, ignore_errors=True)
