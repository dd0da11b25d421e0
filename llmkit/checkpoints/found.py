"""Which checkpoints a path names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from llmkit.checkpoint import format as fmt
from llmkit.checkpoint.foreign import foreign
from llmkit.checkpoint.named import named
from llmkit.checkpoint.read import folders
from llmkit.errors import UserError
from llmkit.files import may_exist
from llmkit.monitor.record import FILES


@dataclass(frozen=True)
class Found:
    """Checkpoints, good or not, the oldest first. root: the folder that holds them.

    run: the run folder they are of; None where they lie outside of one. single: one of them was named.
    """

    root: Path
    folders: list[Path]
    run: Path | None
    single: bool = False


def find(path: Path) -> Found:
    """The checkpoints at a path: of a run folder, in a folder of checkpoints, or the one that is there or
    that RUN@best and the like name.

    Raises UserError where there are none.
    """
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(path)) and not may_exist(path):
        raise UserError(f"{path}: is a URL; fetch the copy first (llmkit checkpoint fetch URL FOLDER)")
    path = named(path)
    if not path.is_dir():
        there = may_exist(path)
        what = "is no folder" if there else "no such folder"
        raise UserError(f"{path}: {what}; name a run folder, its checkpoints folder or a checkpoint")
    below = path / "checkpoints"
    if not below.is_dir() and os.path.lexists(path / fmt.MANIFEST):
        return Found(path.parent, [path], run_of(path.parent), single=True)
    root = below if below.is_dir() else path
    found = folders(root)
    if not found:
        why = foreign(root) or "there is no checkpoint in it; name a run folder that has one"
        raise UserError(f"{root}: {why}")
    return Found(root, found, run_of(root))


def run_of(root: Path) -> Path | None:
    """The run folder whose checkpoints lie in `root`, which may be a link."""
    run = root.absolute().parent
    is_run = root.name == "checkpoints" and any((run / name).is_file() for name in FILES)
    return root.parent if is_run else None
