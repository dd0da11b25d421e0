"""Consoles that show little: of the ranks beside the first, and of `llmkit train --quiet`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from rich.text import Text

from llmkit.monitor.console import Console


class SilentConsole(Console):
    """The console of ranks other than 0: what it prints goes to the log alone."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream=stream, terminal=False)

    def _show(self, line: Text) -> None:
        """Shows nothing."""


class QuietConsole(SilentConsole):
    """That of `--quiet`: shows where the log is, what is important, and how the run has ended."""

    def keep_log(self, path: Path) -> None:
        """As that of all consoles; says where the log is."""
        super().keep_log(path)
        Console._show(self, Text(f"log: {path}"))

    def note(self, text: str, important: bool = False) -> None:
        """Logs `text`, and shows it where it is important."""
        super().note(text)
        if important:
            for line in text.splitlines():
                Console._show(self, Text(line))

    def summary(self, facts: Mapping[str, str]) -> None:
        """Logs the facts, and shows them on one line."""
        super().summary(facts)
        Console._show(self, Text("; ".join(f"{name} {text}" for name, text in facts.items())))


def console_of_rank(rank: int, quiet: bool = False) -> Console:
    """The console of a process of a run. quiet: as `QuietConsole`."""
    if rank > 0:
        return SilentConsole()
    return QuietConsole() if quiet else Console()
