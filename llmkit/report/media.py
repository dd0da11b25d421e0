"""What a run has recorded beside numbers, as a page shows it: tables such as samples, histograms, images."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.config.mistakes import printable
from llmkit.monitor.jsonlines import Row
from llmkit.monitor.media import EXPERT_LOADS
from llmkit.monitor.record import RunRecord
from llmkit.monitor.series import LARGEST
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
    for name, step, item in _newest_first(run, "table"):
        if name == EXPERT_LOADS:  # a picture, see `report.heatmap`
            continue
        known = found.setdefault(name, [])
        if len(known) < NEWEST:
            cells = [[_cell(cell) for cell in row] for row in list(item["rows"])[:MOST_ROWS]]
            more = item.get("rows_left_out", 0)
            left_out = len(item["rows"]) - len(cells) + (more if isinstance(more, int) else 0)
            known.append(Table(name, step, [_cell(each) for each in item["columns"]], cells, left_out))
    names = sorted(found, key=lambda name: (name != "samples", name))
    return [table for name in names for table in found[name]]


def histograms(run: RunRecord) -> list[Histogram]:
    """The newest histogram of each name."""
    found: dict[str, Histogram] = {}
    for name, step, item in _newest_first(run, "histogram"):
        if name in found or len(found) == MOST_BARS:
            continue
        try:
            counts = np.array(item["counts"], np.float64)
            counts = np.where(np.abs(counts) < LARGEST, counts, 0.0)
            low, high = float(item["edges"][0]), float(item["edges"][-1])
        except (TypeError, ValueError, OverflowError):  # they may hold anything
            continue
        if counts.ndim == 1 and counts.max(initial=0.0) > 0:
            bars = np.rint(100 * counts.clip(min=0) / counts.max()).astype(int).tolist()
            found[name] = Histogram(name, step, bars, short(low), short(high))
    return list(reversed(found.values()))


def pictures(run: RunRecord) -> list[Picture]:
    """The newest image of each name, as far as all together are small; only files of the run folder."""
    found: dict[str, Picture] = {}
    left = IMAGE_BYTES
    for name, step, item in _newest_first(run, "image"):
        path = _inside(run.folder, item["path"])
        if name in found or path is None or (size := path.stat().st_size) > left:
            continue
        left -= size
        content = base64.b64encode(path.read_bytes()).decode()
        found[name] = Picture(name, step, f"data:{_IMAGES[path.suffix.lower()]};base64,{content}")
    return list(reversed(found.values()))


def _newest_first(run: RunRecord, kind: str) -> Iterator[tuple[str, int, Row]]:
    """Name, step and item of all items of this kind."""
    for item in reversed(run.media):
        if item["kind"] == kind:
            yield printable(item["name"], 100), item["step"], item


def _cell(value: Any) -> str:
    text = short(value) if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."


def _inside(folder: Path, name: str) -> Path | None:
    """An image file of the run folder; None for anything else, links that lead out of it included."""
    path = folder / name
    try:
        within = path.resolve().is_relative_to(folder.resolve())
        return path if within and path.suffix.lower() in _IMAGES and path.is_file() else None
    except (OSError, ValueError):  # ValueError: no path at all
        return None
