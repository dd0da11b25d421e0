"""Sources in memory, for what does not depend on where tokens come from."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from xxhash import xxh64_hexdigest

from llmkit.config import schema
from llmkit.data.live.source import LiveSource

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
) -> tuple[Any, schema.Data]:
    """What a loader reads, of these sources, and settings to go with it."""
    weights = weights or {}
    lanes = [rows.lane_limit for rows in sources.values() if isinstance(rows, LiveSource)]
    columns = math.lcm(*lanes) if lanes else None
    sources = {
        name: dataclasses.replace(rows, columns=columns) if isinstance(rows, LiveSource) else rows
        for name, rows in sources.items()
    }
    max_epochs: dict[str, int] = changes.pop("max_epochs", {})
    specs = [
        schema.Source(
            type="text", path="x", name=name, weight=weights.get(name, 1.0), max_epochs=max_epochs.get(name)
        )
        for name in sources
    ]
    config = schema.Data(sources=specs, sequence_length=changes.pop("sequence_length", T), **changes)
    prints = [
        {
            "name": name,
            "kind": "live" if isinstance(rows, LiveSource) else "shards",
            "tokens": None if isinstance(rows, LiveSource) else rows.tokens,
            "digest": rows.digest,
            "strict_digest": rows.strict_digest if isinstance(rows, LiveSource) else None,
            "heldout": None,
        }
        for name, rows in sources.items()
    ]
    prepared = SimpleNamespace(
        train=tuple(
            SimpleNamespace(
                name=spec.name, rows=rows, weight=spec.weight, max_epochs=spec.max_epochs, reference=None
            )
            for spec, rows in zip(specs, sources.values(), strict=True)
        ),
        tokenizer=SimpleNamespace(end_of_text_id=END, hash="toy"),
        sequence_length=config.sequence_length,
        document_masks=config.document_masks,
        has_pairs=False,
        fingerprint={
            "tokenizer": "toy",
            "sequence_length": config.sequence_length,
            "document_masks": config.document_masks,
            "packing": config.packing,
            "lanes": columns,
            "sources": prints,
        },
    )
    return prepared, config
