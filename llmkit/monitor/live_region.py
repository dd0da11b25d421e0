"""Lines at the end of a terminal that are drawn anew in place, under lines that stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence

ERASE_LINE, ERASE_BELOW = "\x1b[K", "\x1b[J"


class LiveRegion:
    """Draws lines again and again in the same place.

    Between two drawings the cursor is at the beginning of the first line. So what somebody else prints there
    (a library's warning) stays above the next drawing, and a terminal that reflows its lines when its width
    changes moves the cursor with them: nothing needs to be known of the terminal.

    write: takes the text of a whole drawing at once, so that nothing flickers.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._lines: list[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Shows these lines, each shorter than the terminal is wide, instead of those before."""
        self._lines = list(lines)
        self._write("\r" + self._drawn())

    def print_above(self, text: str) -> None:
        """A text of whole lines that stays."""
        self._write(f"\r{ERASE_BELOW}{text}{self._drawn()}" if self._lines else text)

    def clear(self) -> None:
        """Removes the lines."""
        if self._lines:
            self._lines = []
            self._write(f"\r{ERASE_BELOW}")

    def leave(self) -> None:
        """Leaves the lines where they are, and goes on below them."""
        self._write("\n" * len(self._lines))
        self._lines = []

    def _drawn(self) -> str:
        up = f"\x1b[{len(self._lines) - 1}A" if len(self._lines) > 1 else ""
        return f"{ERASE_LINE}\n".join(self._lines) + ERASE_BELOW + up + "\r"
