"""`llmkit data inspect`: figures of the sources, rows of a step, records that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from llmkit.config.schema import Config
from llmkit.data.building.probe import open_sources
from llmkit.data.inspect import inspect, inspect_json, print_lines
from llmkit.data.inspect_rejects import write_rejects
from llmkit.data.prepared import PreparedData


def inspect_command(config: Config, prepared: PreparedData, count: int, color: bool, as_json: bool) -> None:
    """Prints figures of all sources, the mixture, and of each source `count` rows."""
    if as_json:
        _print_json(inspect_json(config, prepared, count))
    else:
        print_lines(inspect(config, prepared, count, color))


def rows_command(
    config: Config,
    prepared: PreparedData,
    *,
    step: int | None,
    sample: int | None,
    minutes: int,
    color: bool,
    as_json: bool,
    report: Callable[[str], None],
) -> None:
    """Prints the rows of a step, or the row at position `sample`. report: gets what live sources take."""
    from llmkit.data.inspect_rows import Rows, row_lines, rows_json  # imports torch

    rows = Rows(config, prepared, report, live_seconds=60.0 * minutes)
    if step is not None:
        found = rows.of_step(step)
    else:
        assert sample is not None, "a step or a position"
        found = rows.at([sample])
    if as_json:
        _print_json({"step": step, "rows": rows_json(found, prepared)})
    else:
        print_lines(row_lines(found, prepared, color))


def rejects_command(config: Config, path: Path, as_json: bool) -> None:
    """Writes the records that cannot be read, and prints how many there are of each source."""
    found = write_rejects(open_sources(config.data), path, (lambda line: None) if as_json else print)
    if as_json:
        _print_json({name: dict(counts) for name, counts in found.items()})


def _print_json(value: JsonValue) -> None:
    print(json.dumps(value, indent=1))
