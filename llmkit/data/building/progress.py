"""How far a build is: a bar on a terminal, a line now and then elsewhere.

In shares of the source's files, which may be packed: how much text they hold is known at the end.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from llmkit.data.building.cache import Report

SECONDS = 10.0
"""Between lines."""


class Progress:
    """Counts bytes of a source. name: of the source. total: its bytes. already: of an earlier build."""

    def __init__(self, name: str, total: int, already: int, report: Report) -> None:
        self._name, self._total, self._done, self._report = name, total, already, report
        self._told = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=already, desc=f"data: {name}", leave=False, dynamic_ncols=True,
                bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
            )  # fmt: skip

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """So many bytes more are tokenized."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._told >= SECONDS:
            self._told = time.monotonic()
            self._report(f"data: {self._name}: {self._done / max(1, self._total):.0%} is tokenized")
