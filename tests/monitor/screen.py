"""What a terminal shows after it was sent some text; colours are left out."""

from __future__ import annotations

import re


class Screen:
    """Lines of text with a cursor. It never scrolls: `lines` has all that there ever was.

    width: columns; what is longer wraps.
    """

    def __init__(self, width: int = 80) -> None:
        self.width, self.row, self.column = width, 0, 0
        self._cells: list[list[str]] = [[]]

    def feed(self, text: str) -> Screen:
        for code, character in re.findall(r"\x1b\[([0-9;?]*[A-Za-z])|(.|\n)", text, flags=re.S):
            self._code(code) if code else self._character(character)
        return self

    @property
    def lines(self) -> list[str]:
        """All lines, without those at the end that are empty."""
        shown = ["".join(cells).rstrip() for cells in self._cells]
        while shown and not shown[-1]:
            del shown[-1]
        return shown

    def _code(self, code: str) -> None:
        line = self._cells[self.row]
        if code == "K":
            del line[self.column :]
        elif code == "J":
            del line[self.column :]
            del self._cells[self.row + 1 :]
        elif code.endswith("A"):
            self.row -= int(code[:-1])
            assert self.row >= 0, "above the first line"
        else:
            assert code.endswith("m"), code

    def _character(self, character: str) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row, self.column = self.row + 1, 0
        else:
            if self.column == self.width:
                self.row, self.column = self.row + 1, 0
                self._grow()
            line = self._cells[self.row]
            line += [" "] * (self.column + 1 - len(line))
            line[self.column] = character
            self.column += 1
        self._grow()

    def _grow(self) -> None:
        while self.row >= len(self._cells):
            self._cells.append([])
