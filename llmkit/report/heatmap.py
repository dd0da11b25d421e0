"""Statistics by layer as small pictures: a row a layer, a column a few steps of the run, or an expert."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llmkit.config.mistakes import printable
from llmkit.monitor.columns import COLUMNS
from llmkit.monitor.media import EXPERT_LOADS as LOADS_TABLE
from llmkit.monitor.record import RunRecord
from llmkit.report.chart import short

WIDTH = 300
"""Columns of a picture at most."""
MOST_LAYERS = 400
TITLES = {
    "grad_norm/": "Gradient norm",
    "update_ratio/": "Update to weight",
    "activation_rms/": "Activations, root mean square",
    "activation_max/": "Activations, largest magnitude",
    "router_z/": "Router z loss",
    "expert_load_max/": "Largest load of an expert, over the mean",
    "expert_load_min/": "Smallest load of an expert, over the mean",
    "expert_dropped/": "Dropped choices of experts",
}
"""Of statistics whose columns have short names."""
_COLORS = np.array(
    [[68, 1, 84], [70, 50, 127], [54, 92, 141], [39, 127, 142], [31, 161, 135], [74, 194, 109],
     [159, 218, 58], [253, 231, 37]], np.float64,
)  # fmt: skip
"""Eight colours of viridis, which reads the same in grey and to the colour-blind."""
_UNKNOWN = 255


@dataclass(frozen=True)
class Heatmap:
    """A picture. image: a data URL; layers: names of its rows, from the top; low, high: ends of its scale.
    across: what its columns are, from left to right."""

    title: str
    image: str
    layers: list[str]
    low: str
    high: str
    across: str


def heatmaps(run: RunRecord) -> Iterator[Heatmap]:
    """A picture for each statistic that the run has by layer."""
    for column in COLUMNS:
        if not column.name.endswith("/LAYER"):
            continue
        names = [name for name in run.columns if name.startswith(column.prefix)][:MOST_LAYERS]
        names = [name for name in names if np.isfinite(run.columns[name].values).any()]
        if names:
            yield _heatmap(run, column.prefix, names)
    yield from _loads(run)


def _heatmap(run: RunRecord, prefix: str, names: list[str]) -> Heatmap:
    steps = np.unique(np.concatenate([run.columns[name].steps for name in names]))
    grid = np.full((len(names), steps.size), np.nan)
    for row, name in enumerate(names):
        column = run.columns[name]
        grid[row, np.searchsorted(steps, column.steps)] = column.values
    layers = [name.removeprefix(prefix) for name in names]
    title = TITLES.get(prefix, prefix.rstrip("/").replace("_", " ").capitalize())
    return _picture(title, grid, layers, f"steps {int(steps[0]):,} to {int(steps[-1]):,}")


def _loads(run: RunRecord) -> Iterator[Heatmap]:
    """The newest loads of experts, each over the mean of its layer; nothing where they are not on record."""
    items = (item for item in reversed(run.media) if (item["kind"], item["name"]) == ("table", LOADS_TABLE))
    if (newest := next(items, None)) is None:
        return
    rows = [row for row in newest["rows"][:MOST_LAYERS] if len(row) > 1]
    try:
        grid = np.array([row[1:] for row in rows], np.float64)
    except (TypeError, ValueError):  # the file may hold anything
        return
    if grid.ndim == 2 and np.isfinite(grid).any():
        across = f"experts 0 to {grid.shape[1] - 1:,}, step {newest['step']:,}"
        layers = [printable(str(row[0]), 100) for row in rows]
        yield _picture("Load of each expert, over the mean of its layer", grid, layers, across)


def _picture(title: str, grid: np.ndarray, layers: list[str], across: str) -> Heatmap:
    """grid: (layers, columns), NaN where nothing is known."""
    grid = _narrowed(grid)
    positive = grid[np.isfinite(grid) & (grid > 0)]
    low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.0, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = (
            (np.log(grid) - np.log(low or 1.0)) / (np.log(high / low) or 1.0) if high > low else grid * 0.0
        )
    levels = np.rint(np.clip(np.nan_to_num(scaled, neginf=0.0), 0, 1) * 254)
    levels = np.where(np.isfinite(grid), levels, _UNKNOWN).astype(np.uint8)
    picture = base64.b64encode(png(levels, _palette())).decode()
    return Heatmap(title, f"data:image/png;base64,{picture}", layers, short(low), short(high), across)


def _narrowed(grid: np.ndarray) -> np.ndarray:
    """The grid, in at most WIDTH columns: the largest value of those that became one."""
    width = grid.shape[1]
    if width <= WIDTH:
        return grid
    edges = np.linspace(0, width, WIDTH + 1).astype(int)[:-1]
    highest = np.maximum.reduceat(np.where(np.isnan(grid), -np.inf, grid), edges, axis=1)
    return np.where(np.isneginf(highest), np.nan, highest)


def _palette() -> np.ndarray:
    """(256, 3) uint8: from low to high, and grey for what is not known."""
    at = np.linspace(0, len(_COLORS) - 1, 255)
    colors = np.stack([np.interp(at, range(len(_COLORS)), _COLORS[:, part]) for part in range(3)], 1)
    return np.concatenate((colors, [[128, 128, 128]])).round().astype(np.uint8)


def png(levels: np.ndarray, palette: np.ndarray) -> bytes:
    """A PNG file of (height, width) uint8 indices into a palette, (256, 3) uint8 (RFC 2083)."""
    height, width = levels.shape

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    rows = b"".join(b"\0" + levels[row].tobytes() for row in range(height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"PLTE", palette.tobytes())
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )
