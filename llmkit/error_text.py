"""Messages of errors as a terminal shows them: wrapped to its width, what matters in colour."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping
from typing import TextIO

NARROWEST, WIDEST = 40, 120
"""Columns: a narrower terminal cuts lines where it likes; longer lines than this are hard to read."""
_DEEPER = 4
"""Columns that the lines after the first of a wrapped line are indented by."""
_FIRST = re.compile(r"\A(llmkit\S*(?: [a-z]+)*:)")
_BOLD_RED, _BOLD, _PLAIN = "\x1b[1;31m", "\x1b[1m", "\x1b[0m"


def show_error(text: str, stream: TextIO, environment: Mapping[str, str] = os.environ) -> None:
    """Prints the message of an error, which begins with `llmkit:`.

    On a terminal lines are wrapped at words; a file or a pipe gets them as they are, to be searched. Colours
    follow `wants_color`.
    """
    width = terminal_width(stream)
    if width is not None:
        text = "\n".join(wrapped_line(line, width) for line in text.split("\n"))
    if wants_color(stream, environment):
        text = coloured(text)
    print(text, file=stream)


def terminal_width(stream: TextIO) -> int | None:
    """Columns to use of a terminal; None where the stream is none."""
    try:
        if not stream.isatty():
            return None
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return None
    return min(columns or 80, WIDEST)


def wrapped_line(line: str, width: int) -> str:
    """A line as several of at most `width` columns; words are whole, later lines are indented deeper."""
    if len(line) <= width or width < NARROWEST:
        return line
    indent = line[: len(line) - len(line.lstrip(" "))]
    deeper = indent + " " * _DEEPER
    return textwrap.fill(
        line.lstrip(" "), width, initial_indent=indent, subsequent_indent=deeper,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def wants_color(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether colours are shown: on a terminal that is not dumb, unless NO_COLOR is set (no-color.org).

    FORCE_COLOR asks for them anywhere.
    """
    if environment.get("NO_COLOR"):
        return False
    if environment.get("FORCE_COLOR", "").lower() not in ("", "0", "false", "no"):
        return True
    try:
        return stream.isatty() and environment.get("TERM", "dumb") not in ("dumb", "unknown", "")
    except ValueError:  # the stream is closed
        return False


def coloured(text: str) -> str:
    """A message with its program in red, and what was probably meant in bold."""
    text = _FIRST.sub(rf"{_BOLD_RED}\1{_PLAIN}", text)
    return re.sub(r"(did\s+you\s+mean\s+)([^?\n]+)(?=\?)", rf"\1{_BOLD}\2{_PLAIN}", text)
