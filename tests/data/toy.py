"""Sources in memory, for what does not depend on where tokens come from."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.config import schema
from llmkit.data.live.source import LiveSource
from llmkit.data.prepared import PreparedData
from llmkit.data.source import Source

T = 8
END = 0


class ToyRows:
    """A stream of `count` distinct tokens from `first` on; every `masked`-th token is no target."""

    def __init__(self, count: int, first: int = 1, masked: int = 0) -> None:
        self.stream = np.arange(first, first + count, dtype=np.uint32)
        self.masked, self.has_mask = masked, masked > 0
        self.tokens = count
        self.digest = xxh64_hexdigest(self.stream.tobytes() + bytes([masked]))

    @property
    def period(self) -> int:
        return self.tokens - 1

    def row_count(self, length: int) -> int:
        """Rows of the first epoch."""
        return -(-self.period // length)

    def rows(self, index: np.ndarray, length: int, out: np.ndarray | None = None) -> np.ndarray:
        place = index[:, None] * length + np.arange(length + 1)
        rows = self.stream[(place - 1) % self.period + 1]
        rows[:, 0] = self.stream[place[:, 0] % self.period]
        if out is None:
            return rows
        out[:] = rows
        return out

    def targets(self, index: np.ndarray, length: int) -> np.ndarray | None:
        if not self.has_mask:
            return None
        return self.rows(index, length)[:, 1:] % self.masked != 0


def toy(
    sources: dict[str, Any], weights: dict[str, float] | None = None, **changes: Any
) -> tuple[PreparedData, schema.Data]:
    """What a loader reads, of these sources, and settings to go with it."""
    weights = weights or {}
    lanes = [rows.lane_limit for rows in sources.values() if isinstance(rows, LiveSource)]
    columns = math.lcm(*lanes) if lanes else None
    sources = {
        name: dataclasses.replace(rows, columns=columns) if isinstance(rows, LiveSource) else rows
        for name, rows in sources.items()
    }
    max_epochs: dict[str, int] = changes.pop("max_epochs", {})
    opened = []
    for index, (name, rows) in enumerate(sources.items()):
        is_live = isinstance(rows, LiveSource)
        spec = schema.Source(
            type="text", path="x", name=name, live=is_live,
            weight=weights.get(name, 1.0), max_epochs=max_epochs.get(name),
        )  # fmt: skip
        opened.append(Source(index, spec, **{"live" if is_live else "stored": rows}))
    config = schema.Data(
        sources=[source.spec for source in opened],
        sequence_length=changes.pop("sequence_length", T),
        **({"stream_shards": columns} if columns else {}),
        **changes,
    )
    tokenizer: Any = SimpleNamespace(end_of_text_id=END, hash="toy")
    return PreparedData.of(config, tokenizer, opened), config


def folders(prepared: PreparedData) -> dict[str, Path]:
    """What was built, by source."""
    return {source.name: source.folder for source in prepared.sources if source.folder is not None}
