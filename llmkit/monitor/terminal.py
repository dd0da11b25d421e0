"""What a stream of text can show: a view that is drawn in place, colours, other letters than ASCII."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TextIO

import rich.console
from rich.text import Text


def takes_live_view(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether lines can be drawn in place: on a terminal that is not dumb, nor kept as a log.

    CI systems and notebooks give a command a terminal, too, and keep all that it writes.
    """
    try:
        is_terminal = stream.isatty()
    except ValueError:  # the stream is closed
        return False
    if not is_terminal or environment.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    return not is_set(environment, "CI") and not is_set(environment, "JPY_PARENT_PID")


def is_set(environment: Mapping[str, str], name: str) -> bool:
    """Whether a variable says yes."""
    return environment.get(name, "").lower() not in ("", "0", "false", "no")


def size_of(stream: TextIO) -> tuple[int, int]:
    """Columns and rows of a terminal; without one those that COLUMNS and LINES name, or 80 and 24."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError, AttributeError):
        columns, rows = (_count(os.environ.get(name, "")) for name in ("COLUMNS", "LINES"))
    return columns or 80, rows or 24


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0


def shows_only_ascii(encoding: str | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream of this encoding cannot show the blocks of bars and curves, as Linux's own console."""
    has_them = (encoding or "").lower().replace("-", "").startswith("utf")
    return not has_them or environment.get("TERM") == "linux"


class Painter:
    """Gives text its colours, as a string for a terminal.

    terminal: whether it is shown in place on one. Colours follow NO_COLOR, FORCE_COLOR (also in a log) and
    TERM.
    """

    def __init__(self, terminal: bool, environment: Mapping[str, str] = os.environ) -> None:
        coloured = terminal or is_set(environment, "FORCE_COLOR")
        self._console = rich.console.Console(
            file=io.StringIO(),  # rich flushes its file at each capture, which a stopped terminal never ends
            width=10_000, height=100, force_terminal=coloured, force_jupyter=False, highlight=False,
            markup=False, emoji=False, _environ=environment,
        )  # fmt: skip

    def __call__(self, text: Text) -> str:
        """`text`, which may have several lines, with the escape sequences of its styles."""
        with self._console.capture() as captured:
            self._console.print(text, end="", soft_wrap=True)
        return captured.get()
