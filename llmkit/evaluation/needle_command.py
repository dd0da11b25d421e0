"""`llmkit evaluate --needle`: whether a model finds a number in long texts, on all processes of a launch."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmkit.command_line import to_stderr
from llmkit.errors import UserError
from llmkit.evaluation.command import check_output, load_scorer
from llmkit.evaluation.haystack import sentences
from llmkit.evaluation.needle import Cell, NeedleTest, run_needles
from llmkit.evaluation.needle_plot import plot
from llmkit.evaluation.team import led
from llmkit.files import cannot_read, plain, write_atomic
from llmkit.parallel.world import launched
from llmkit.weights import open_weights


def needle_command(
    path: Path,
    test: NeedleTest,
    *,
    precision: str = "auto",
    rows: int | None = None,
    tensor_size: int = 1,
    picture: str | None = None,
    as_json: bool = False,
    ema: bool = False,
) -> int:
    """Prints what was found at each length and depth, as tables or as JSON, on rank 0; the exit code.

    rows: of a batch; None = by memory. tensor_size: processes that share each copy of the model. picture:
    file that the plot is written to, as SVG. ema: see `open_weights`.
    """
    check_output("--plot", picture)
    with launched(tensor_size, os.environ) as mesh:
        weights = open_weights(path, mesh, ema=ema)
        scorer, facts = load_scorer(weights, mesh, precision, rows)
        tokenizer = weights.tokenizer()

        def tell(length: int, cells: Sequence[Cell]) -> None:
            found = sum(cell.exact for cell in cells) / len(cells)
            to_stderr(f"{length:,} tokens: {100 * found:.0f} % of the numbers found")

        cells = led(scorer, lambda lead: run_needles(test, lead, tokenizer, tell))
    if cells is None:
        return 0
    print(json.dumps(plain(as_object(cells, test, facts))) if as_json else tables(cells), flush=True)
    if picture is not None:
        with write_atomic(Path(picture)) as file:
            file.write(plot(cells, path.name or str(path)).encode(errors="backslashreplace"))
    return 0


def read_filler(path: str) -> tuple[str, ...]:
    """The sentences of a text file. Raises UserError where it cannot be read, or holds none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise cannot_read(Path(path), error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"--filler {path}: holds bytes that are no UTF-8 (at byte {error.start})") from error
    found = tuple(sentences(text))
    if not found:
        raise UserError(f"--filler {path}: is empty; name a file with text")
    return found


def as_object(cells: Sequence[Cell], test: NeedleTest, facts: dict[str, Any]) -> dict[str, Any]:
    """All figures with what they are of."""
    settings = {"trials": test.trials, "digits": test.digits, "seed": test.seed}
    return {"model": facts, "needle": settings, "cells": [cell._asdict() for cell in cells]}


def tables(cells: Sequence[Cell]) -> str:
    """A table of the share found and one of the loss, for the terminal."""
    trials = cells[0].trials
    of = {(cell.length, cell.depth): cell for cell in cells}
    lengths, depths = sorted({length for length, _ in of}), sorted({depth for _, depth in of})
    width = max(8, *(len(f"{length:,}") + 2 for length in lengths))

    def table(title: str, shown: dict[tuple[int, float], str]) -> list[str]:
        head = "depth".rjust(8) + "".join(f"{length:,}".rjust(width) for length in lengths)
        rows = [
            f"{100 * depth:g} %".rjust(8) + "".join(shown[length, depth].rjust(width) for length in lengths)
            for depth in depths
        ]
        return [title, head, *rows]

    found = {key: f"{100 * cell.exact:.0f} %" for key, cell in of.items()}
    losses = {key: f"{cell.loss:.2f}" for key, cell in of.items()}
    return "\n".join(
        [
            *table(f"numbers found, of {trials} texts for each depth and length in tokens", found),
            "",
            *table("loss of the number, nats a token", losses),
        ]
    )
