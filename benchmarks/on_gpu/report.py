"""The page of a run: on what it was measured, and its tables, written anew with every row."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

CLOCKS = ("clocks.sm", "clocks.mem", "power.draw", "power.limit", "temperature.gpu")


class Row(NamedTuple):
    """A row of a table, by the names of its columns, of which the first names the row."""

    table: str
    cells: Mapping[str, str]

    @property
    def name(self) -> str:
        """What the row is about."""
        return next(iter(self.cells.values()))


@dataclass
class Page:
    """Tables in the order in which their first rows came; a row replaces an earlier one of the same name."""

    path: Path
    title: str
    facts: Mapping[str, str]
    notes: Sequence[str] = ()
    tables: dict[str, dict[str, Mapping[str, str]]] = field(default_factory=dict)

    def fill(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Adds the rows one by one, and passes them on; each is on disk before the next is measured."""
        self.write()
        for row in rows:
            self.tables.setdefault(row.table, {})[row.name] = row.cells
            self.write()
            yield row

    def write(self) -> None:
        """The whole page, in the place of what was there."""
        self.path.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The page as Markdown."""
        lines = [f"# {self.title}", "", *(f"- {name}: {value}" for name, value in self.facts.items()), ""]
        for name, rows in self.tables.items():
            lines += [f"## {name}", "", *_table(list(rows.values())), ""]
        lines += ["## How to read this", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    head = list(dict.fromkeys(name for cells in rows for name in cells))
    lines = [[cells.get(name, "").replace("|", "\\|") for name in head] for cells in rows]
    return [f"| {' | '.join(each)} |" for each in (head, ["---"] * len(head), *lines)]


def clocks(device: torch.device) -> str:
    """Clocks, power and temperature of the GPU now, as its driver says; empty where nothing says it."""
    if device.type != "cuda":
        return ""
    uuid = torch.cuda.get_device_properties(device).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
