"""`llmkit launch-files`: what stands beside the package in its repository, written where one works."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmkit.command_line import print_json
from llmkit.config.file_text import SHIPPED, SHIPPED_FOLDERS
from llmkit.errors import RunFault, UserError

LEFT_OUT = ("__pycache__",)


def launch_files_command(folder: Path, *, as_json: bool = False) -> int:
    """Writes all files into a folder; those that are there with the same content stay.

    as_json: the files are listed, with whether each is new.

    Raises UserError, before anything is written, where a file is there with another content.
    """
    files = list(shipped_files())
    if not files:
        raise RunFault(f"launch-files: {SHIPPED} holds no files; install llmkit again")
    try:
        differing = [str(name) for name in files if _differs(folder / name, SHIPPED / name)]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise UserError(
                f"launch-files: {folder} has other files of these names: {', '.join(differing[:3])}{more}; "
                "name a new folder"
            )
        new = [name for name in files if not (folder / name).exists()]
        for name in new:  # the others have the same content, or are these very files: in a checkout
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SHIPPED / name, folder / name)
    except OSError as error:
        raise UserError(f"launch-files: {error.filename or folder}: {error.strerror or error}") from error
    if as_json:
        listed = [{"path": str(folder / name), "written": name in new} for name in files]
        print_json({"folder": str(folder), "files": listed})
        return 0
    print(f"{folder}: {len(files)} files in {', '.join(f'{name}/' for name in SHIPPED_FOLDERS)}")
    return 0


def shipped_files() -> Iterator[Path]:
    """The files, relative to this folder."""
    for folder in SHIPPED_FOLDERS:
        for place, folders, names in os.walk(SHIPPED / folder):
            folders[:] = sorted(set(folders) - set(LEFT_OUT))
            yield from (Path(place, name).relative_to(SHIPPED) for name in sorted(names))


def _differs(there: Path, ours: Path) -> bool:
    """Whether something else is there already."""
    if not os.path.lexists(there):
        return False
    return not there.is_file() or there.read_bytes() != ours.read_bytes()
