"""Which files a source reads."""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from llmkit.config import schema
from llmkit.errors import UserError

_STDLIB_LEAVES_OUT = frozenset({"site-packages", "test", "tests", "idlelib", "__pycache__"})


def list_files(spec: schema.Source, place: str) -> list[Path]:
    """Files of a source, absolute, without repeats, sorted by name.

    A folder stands for the files in and under it, hidden ones left out (jsonl: those that end in .jsonl).
    place: key of the source's settings, for messages. Raises UserError where nothing is found.
    """
    if spec.type == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        found = set(_walk(root, ".py", _STDLIB_LEAVES_OUT))
        if not found:
            raise UserError(f"{place}: {root} has no *.py files: this Python lacks its library's source")
    else:
        patterns = [spec.path] if isinstance(spec.path, str) else spec.path or []
        if not patterns:
            raise UserError(f"{place}.path: a {spec.type} source needs a file, a folder or a glob pattern")
        suffix = ".jsonl" if spec.type == "jsonl" else ""
        found = {path for pattern in patterns for path in _match(pattern, suffix, place)}
    return sorted(found, key=lambda path: path.as_posix())


def _match(pattern: str, suffix: str, place: str) -> list[Path]:
    # A name that exists is taken as it is, even where it has the signs of a pattern: data[1].txt.
    pattern = os.path.expanduser(pattern)
    names = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
    found: list[Path] = []
    for name in names:
        path = Path(os.path.abspath(name))
        found += _walk(path, suffix) if path.is_dir() else [path]
    if found:
        return found
    if not names:
        what = "nothing matches" if glob.has_magic(pattern) else "there is no"
        raise UserError(f"{place}.path: {what} {pattern} (looked from {os.getcwd()})")
    raise UserError(f"{place}.path: {pattern} holds no {'*' + suffix + ' ' if suffix else ''}files")


def _walk(root: Path, suffix: str, leave_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    def unreadable(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from error

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = [name for name in folders if name not in leave_out and not name.startswith(".")]
        for name in names:
            if name.endswith(suffix) and not name.startswith("."):
                yield Path(folder, name)
