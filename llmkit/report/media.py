"""What a run has recorded beside numbers, as a page shows it: tables such as samples, histograms, images."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.config.mistakes import printable
from llmkit.monitor.jsonlines import Row
from llmkit.monitor.record import RunRecord
from llmkit.report.chart import short

NEWEST = 3
"""Evaluations whose tables are shown."""
MOST_ROWS = 50
MOST_TEXT = 4000
"""Characters of a cell."""
MOST_BARS = 60
"""Histograms shown."""
IMAGE_BYTES = 2**20
"""Of all images of a page."""
_IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclass(frozen=True)
class Table:
    """Rows of texts; step: when they were recorded."""

    name: str
    step: int
    columns: list[str]
    rows: list[list[str]]
    left_out: int


@dataclass(frozen=True)
class Histogram:
    """bars: heights in percent of the highest one. low, high: ends of the range."""

    name: str
    step: int
    bars: list[int]
    low: str
    high: str


@dataclass(frozen=True)
class Picture:
    """source: a data URL."""

    name: str
    step: int
    source: str


def tables(run: RunRecord) -> list[Table]:
    """Of each name the newest tables, the newest first; samples before all others."""
    found: dict[str, list[Table]] = {}
    for item in reversed(run.media):
        name, step = _named(item, "table")
        if name is None or len(found.setdefault(name, [])) == NEWEST:
            continue
        columns, rows = item.get("columns"), item.get("rows")
        if not isinstance(columns, list) or not isinstance(rows, list):
            continue
        cells = [[_cell(cell) for cell in row] for row in rows[:MOST_ROWS] if isinstance(row, list)]
        found[name].append(
            Table(name, step, [_cell(each) for each in columns], cells, len(rows) - len(cells))
        )
    return [
        table for name in sorted(found, key=lambda name: (name != "samples", name)) for table in found[name]
    ]


def histograms(run: RunRecord) -> list[Histogram]:
    """The newest histogram of each name."""
    found: dict[str, Histogram] = {}
    for item in reversed(run.media):
        name, step = _named(item, "histogram")
        if name is None or name in found or len(found) == MOST_BARS:
            continue
        try:
            counts = np.nan_to_num(np.array(item["counts"], np.float64), posinf=0.0, neginf=0.0)
            edges = np.array(item["edges"], np.float64)
        except (KeyError, TypeError, ValueError, OverflowError):
            continue
        if counts.ndim == 1 and counts.size and counts.max() > 0 and edges.shape == (counts.size + 1,):
            bars = np.rint(100 * counts.clip(min=0) / counts.max()).astype(int).tolist()
            found[name] = Histogram(name, step, bars, short(float(edges[0])), short(float(edges[-1])))
    return list(reversed(found.values()))


def pictures(run: RunRecord) -> list[Picture]:
    """The newest image of each name, as far as all together are small; only files of the run folder."""
    found: dict[str, Picture] = {}
    left = IMAGE_BYTES
    for item in reversed(run.media):
        name, step = _named(item, "image")
        path = _inside(run.folder, item.get("path"))
        if name is None or name in found or path is None or (size := path.stat().st_size) > left:
            continue
        left -= size
        content = base64.b64encode(path.read_bytes()).decode()
        found[name] = Picture(name, step, f"data:{_IMAGES[path.suffix.lower()]};base64,{content}")
    return list(reversed(found.values()))


def _named(item: Row, kind: str) -> tuple[str | None, int]:
    """Name and step of an item of this kind; None where it is none."""
    name, step = item.get("name"), item.get("step")
    fits = item.get("kind") == kind and isinstance(name, str) and type(step) is int
    return (printable(name, 100), step) if fits and isinstance(name, str) and type(step) is int else (None, 0)


def _cell(value: Any) -> str:
    text = short(value) if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."


def _inside(folder: Path, name: object) -> Path | None:
    """An image file of the run folder; None for anything else, links that lead out of it included."""
    if not isinstance(name, str) or "\0" in name:
        return None
    path = folder / name
    try:
        within = path.resolve().is_relative_to(folder.resolve())
        return path if within and path.suffix.lower() in _IMAGES and path.is_file() else None
    except OSError:
        return None
