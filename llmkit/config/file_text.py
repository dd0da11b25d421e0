"""The text of a configuration file, or why it cannot be read."""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path
from typing import NoReturn

from llmkit.config.mistakes import Mistake, printable

MAX_BYTES = 2**20
SHIPPED, SHIPPED_FOLDERS = Path(__file__).parents[1] / "shipped", ("configs", "launch", "slurm")
"""What `llmkit launch-files` writes."""


class UnreadableError(Exception):
    """The text cannot be read any further; carries the mistake that says why."""

    def __init__(self, mistake: Mistake) -> None:
        super().__init__(mistake.what)
        self.mistake = mistake


def read_text(path: Path, shown: str) -> str:
    """The text of a configuration file. Raises UnreadableError.

    shown: its name in messages.
    """

    def refuse(what: str, line: int | None = None) -> NoReturn:
        raise UnreadableError(Mistake(shown if line is None else f"{shown}:{line}", what))

    try:
        if not path.exists():
            order = (
                "; the configuration comes before the overrides"
                if "=" in shown
                else similar(path) or shipped(shown)
            )
            refuse(f"there is no such file{order}")
        if not path.is_file():
            refuse("this is no file" + (f" but a folder{_within(path, shown)}" if path.is_dir() else ""))
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as fault:
        refuse(f"the file cannot be read: {getattr(fault, 'strerror', None) or fault}")
    if len(raw) > MAX_BYTES:
        refuse("the file is larger than 1 MiB; is this a configuration?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        refuse(f"the byte 0x{raw[fault.start]:02x} is no UTF-8", raw.count(b"\n", 0, fault.start) + 1)


def similar(path: Path) -> str:
    """The name beside a file that is not there which may be meant; "" where there is none."""
    with contextlib.suppress(OSError):
        if close := difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.75):
            return f"; did you mean {printable(close[0])}?"
    return ""


def shipped(shown: str) -> str:
    """How a file that comes with llmkit, and is not here, is had; "" for other files.

    shown: its path from the working directory.
    """
    name = os.path.normpath(shown)
    if name.split(os.sep)[0] in SHIPPED_FOLDERS and (SHIPPED / name).is_file():
        return "; it comes with llmkit: `llmkit launch-files .` writes it, and the others, into this folder"
    return ""


def _within(folder: Path, shown: str) -> str:
    """Names the configuration in a folder, such as a run folder, that was given instead of a file."""
    inside = os.path.join(shown, "config.yaml")
    return f"; name a configuration in it: {inside}" if (folder / "config.yaml").is_file() else ""
