"""A build that says when it is half way and then waits to be killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from llmkit.config import schema
from llmkit.data.building import build_source, parts
from llmkit.data.building.prepare import prepare
from llmkit.data.building.progress import Progress

PART_BYTES = 1000
PARTS = 3
"""Finished when the build stops."""


def main(folder: Path) -> None:
    """Builds the records in `folder` with two workers; never returns."""
    parts.PART_BYTES = (PART_BYTES, PART_BYTES)
    build_source.SMALL = 0
    finished = 0
    add = Progress.add

    def count(self: Progress, size: int) -> None:
        nonlocal finished
        add(self, size)
        finished += 1
        if finished == PARTS:
            print("half way", flush=True)
            time.sleep(1000)

    Progress.add = count  # type: ignore[method-assign]
    source = schema.Source(type="jsonl", path=str(folder / "r.jsonl"))
    config = schema.Data(
        tokenizer=schema.Tokenizer(type="bytes"), sources=[source], sequence_length=16,
        cache_dir=str(folder / "cache"),
    )  # fmt: skip
    prepare(config, lambda line: None, workers=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
