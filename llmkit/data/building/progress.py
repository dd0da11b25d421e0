"""How far a long computation is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from llmkit.data.building.cache import Report

SECONDS = 10.0
"""Between lines."""


class Progress:
    """Counts parts of a source, by default bytes of its files: they may be packed, and how much text they
    hold is known at the end.

    name: of the source. total: its parts. already: of an earlier build. what: begins lines. done: what the
    parts become.
    """

    def __init__(
        self, name: str, total: int, already: int, report: Report, what: str = "data", done: str = "tokenized"
    ) -> None:
        self._name, self._what, self._word = name, what, done
        self._total, self._done, self._report = total, already, report
        self._told = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=already, desc=f"{what}: {name}", leave=False, dynamic_ncols=True,
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
        """So many parts more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._told >= SECONDS:
            self._told = time.monotonic()
            share = self._done / max(1, self._total)
            self._report(f"{self._what}: {self._name}: {share:.0%} is {self._word}")
