"""media.jsonl: what a run records that is not a number: histograms, tables, images.

One JSON object a line, with `step`, `kind` and `name`. Of several items of one step, kind and name the last
one holds: an evaluation that was interrupted is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from llmkit.errors import UserError
from llmkit.monitor.jsonlines import JsonLines, Row
from llmkit.monitor.sink import Sink
from llmkit.ownership.claim import Claim

FILE = "media.jsonl"
KINDS = {"histogram": ("edges", "counts"), "table": ("columns", "rows"), "image": ("path",)}
"""Kind -> its keys beside `step`, `kind` and `name`."""
EXPERT_LOADS = "expert_load"
"""Name of the table that has, for each layer with experts, their loads over the layer's mean."""
MOST_TEXT = 10_000
"""Characters of a cell of a table; a longer one is shortened."""
MOST_BYTES = 2**20
"""Of an item on disk; a table that is longer has as many of its first rows as fit, another one is refused."""


def histogram(name: str, edges: Sequence[float], counts: Sequence[float]) -> Row:
    """How many values lie between edges[i] and edges[i + 1]. Raises UserError for other lengths."""
    if len(edges) != len(counts) + 1:
        raise UserError(f"histogram {name}: {len(counts)} counts need one edge more, not {len(edges)}")
    return {"kind": "histogram", "name": name, "edges": list(edges), "counts": list(counts)}


def table(name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Row:
    """Rows of texts, numbers or None under named columns. Raises UserError for a row of another length."""
    found = [[_cell(value) for value in row] for row in rows]
    wrong = next((row for row in found if len(row) != len(columns)), None)
    if wrong is not None:
        raise UserError(f"table {name}: a row has {len(wrong)} cells, and there are {len(columns)} columns")
    item: Row = {"kind": "table", "name": name, "columns": list(columns), "rows": found}
    sizes = [len(json.dumps(row)) + 2 for row in found]
    room = MOST_BYTES - len(json.dumps(item | {"rows": []})) - 100  # step, and what follows
    kept = next((n for n in range(len(sizes)) if sum(sizes[: n + 1]) > room), len(sizes))
    if kept < len(found):
        item |= {"rows": found[:kept], "rows_left_out": len(found) - kept}
    return item


def image(name: str, path: str) -> Row:
    """A picture in the run folder; path: relative to that, with "/". Raises UserError for one outside."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise UserError(f"image {name}: {path!r} must be a path inside the run folder, relative to it")
    return {"kind": "image", "name": name, "path": str(parts)}


def checked(item: Mapping[str, Any]) -> Row:
    """The item as `histogram`, `table` or `image` makes it of its keys. Raises UserError."""
    kind, name = item.get("kind"), item.get("name")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"media: the kind {kind!r} is none of {', '.join(KINDS)}")
    if not isinstance(name, str) or not name:
        raise UserError(f"media: {kind} needs a name, a string; it has {name!r}")
    absent = [key for key in KINDS[kind] if key not in item]
    if absent:
        raise UserError(f"media: {kind} {name} has no {', '.join(absent)}")
    makers: dict[str, Callable[..., Row]] = {"histogram": histogram, "table": table, "image": image}
    found = makers[kind](name, *(item[key] for key in KINDS[kind]))
    if len(json.dumps(found, default=str)) > MOST_BYTES:
        raise UserError(f"media: {kind} {name} is longer than {MOST_BYTES} bytes")
    return found


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}..."


def read_media(folder: Path) -> list[Row]:
    """The items of a run folder, oldest first; damaged lines, and what is no item, are left out."""
    return [item for item in JsonLines(folder / FILE).rows() if _is_item(item)]


def cut_back_media(folder: Path, step: int) -> None:
    """Drops what was recorded after `step`: these steps are done again. Before a `MediaSink` writes."""
    _cut_back(JsonLines(folder / FILE), step)


def _cut_back(file: JsonLines, step: int) -> None:
    file.keep(lambda item: _is_item(item) and item["step"] <= step)


def _is_item(item: Row) -> bool:
    try:
        checked(item)
    except (UserError, TypeError):  # TypeError: keys that hold something else than they should
        return False
    return isinstance(item.get("step"), int)


class MediaSink(Sink):
    """Appends each item to media.jsonl of the run folder; there is no file before the first one.

    note: called where the disk refuses items, which then wait in memory. claim: see `JsonLines`.
    """

    def __init__(self, folder: Path, note: Callable[[str], None], claim: Claim | None = None) -> None:
        self._file, self._note = JsonLines(folder / FILE, claim), note
        self._noted = False

    def write(self, row: Mapping[str, Any]) -> None:
        """Rows of numbers go to metrics.jsonl."""

    def media(self, item: Mapping[str, Any]) -> None:
        """Returns when the item has reached the kernel, or waits in memory for a disk that takes it."""
        self._file.append(item)
        fault = self._file.fault
        if fault is not None and not self._noted:
            self._note(f"{FILE} cannot be written, its items wait in memory: {fault}")
        self._noted = fault is not None

    def cut_back(self, step: int) -> None:
        """Drops what was recorded after `step`: the run has gone back to it."""
        _cut_back(self._file, step)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        if self._file.fault is not None:
            self._note(f"the last items of {FILE} could not be written and are lost: {self._file.fault}")
