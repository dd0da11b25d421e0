"""The table of a needle test as a picture: a file of SVG that needs nothing else."""

from __future__ import annotations

import html
from collections.abc import Sequence

from llmkit.evaluation.needle import Cell

CELL = (74, 44)
"""Width and height of a cell, in px."""
LEFT, TOP = 96, 76
NONE, ALL = (247, 251, 255), (8, 48, 107)
"""Colours of no answer and of all answers found: one hue, which reads the same in grey and to the
colour-blind."""
STYLE = "font: 13px system-ui, sans-serif"


def plot(cells: Sequence[Cell], title: str) -> str:
    """A column for each length and a row for each depth; a cell tells the share found and the loss."""
    lengths = sorted({cell.length for cell in cells})
    depths = sorted({cell.depth for cell in cells})
    width, height = LEFT + CELL[0] * len(lengths) + 16, TOP + CELL[1] * len(depths) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" style="{STYLE}">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(12, 24, title, weight="600"),
        _text(12, 44, "share of numbers found; below it the loss in nats a token"),
    ]
    for column, length in enumerate(lengths):
        parts.append(_text(LEFT + CELL[0] * (column + 0.5), TOP - 8, f"{length:,}", anchor="middle"))
    for row, depth in enumerate(depths):
        middle = TOP + CELL[1] * (row + 0.5) + 5
        parts.append(_text(LEFT - 8, middle, f"{100 * depth:g} %", anchor="end"))
    for cell in cells:
        place = LEFT + CELL[0] * lengths.index(cell.length), TOP + CELL[1] * depths.index(cell.depth)
        parts += _cell(cell, *place)
    foot = TOP + CELL[1] * len(depths) + 24
    parts.append(_text(LEFT, foot, "columns: tokens of the text; rows: depth of the number", size=12))
    return "\n".join([*parts, "</svg>\n"])


def _cell(cell: Cell, x: int, y: int) -> list[str]:
    ink = "#fff" if cell.exact > 0.5 else "#222"
    middle = x + CELL[0] / 2
    return [
        f'<rect x="{x}" y="{y}" width="{CELL[0] - 2}" height="{CELL[1] - 2}" fill="{_color(cell.exact)}">'
        f"<title>{cell.trials} texts of {cell.length:,} tokens</title></rect>",
        _text(middle, y + 19, f"{100 * cell.exact:.0f} %", anchor="middle", fill=ink),
        _text(middle, y + 35, f"{cell.loss:.2f}", anchor="middle", fill=ink, size=11),
    ]


def _color(share: float) -> str:
    parts = (round(low + (high - low) * share) for low, high in zip(NONE, ALL, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222", size: int = 13,
    weight: str = "400",
) -> str:  # fmt: skip
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" '
        f'font-weight="{weight}">{html.escape(text)}</text>'
    )
