"""A table for the terminal: columns that are as wide as their texts, and no wider than there is room."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

GAP = "  "


@dataclass(frozen=True)
class Column:
    """A heading, and the texts below it.

    left: whether they begin, rather than end, one below the other. widest: cells it may have at most.
    shortest: to how many it is cut where the terminal is narrow; None = it keeps its width. styled: whether
    its texts get the style of their line.
    """

    heading: str
    texts: Sequence[str]
    left: bool = False
    widest: int | None = None
    shortest: int | None = None
    styled: bool = False


def draw(
    columns: Sequence[Column],
    styles: Sequence[str],
    width: int | None = None,
    paint: Callable[[Text], str] = str,
) -> Iterator[str]:
    """The lines of the table, with a heading; columns without a text are left out.

    styles: of each line. width: of the terminal; None = as wide as it gets. paint: gives text its colours.
    """
    shown = [column for column in columns if any(column.texts)]
    widths = _widths(shown, width)
    for number in range(-1, len(styles)):
        line, styled = Text(), list[tuple[int, int]]()
        for column, cells in zip(shown, widths, strict=True):
            begin = len(line) + (len(GAP) if line else 0)
            cell = _cell(column.heading if number < 0 else column.texts[number], cells, column.left)
            line.append(GAP + cell if line else cell)
            styled += [(begin, len(line))] * column.styled
        line.rstrip()
        if number < 0:
            line.stylize("bold")
        for begin, end in styled if number >= 0 else ():
            line.stylize(styles[number], begin, end)
        yield paint(line)


def _widths(columns: Sequence[Column], width: int | None) -> list[int]:
    """Cells of each column; the last one that may be cut is cut first."""
    widths = [max(map(cell_len, (column.heading, *column.texts))) for column in columns]
    widths = [min(own, column.widest or own) for own, column in zip(widths, columns, strict=True)]
    over = 0 if width is None else sum(widths) + len(GAP) * (len(widths) - 1) - width
    for index in reversed(range(len(columns))):
        if over > 0 and (shortest := columns[index].shortest) is not None:
            cut = min(over, max(0, widths[index] - shortest))
            widths[index] -= cut
            over -= cut
    return widths


def _cell(text: str, width: int, left: bool) -> str:
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    free = " " * (width - cell_len(text))
    return text + free if left else free + text
