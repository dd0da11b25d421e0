"""Two layouts, or two configurations, beside each other."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmkit.config.memory import show_bytes
from llmkit.errors import UserError
from llmkit.estimate.search import Candidate
from llmkit.estimate.term import Term
from llmkit.planner import words
from llmkit.planner.assumed import Load, open_subject
from llmkit.planner.ground import Place
from llmkit.planner.study import asked_layout


def compare(load: Load, options: argparse.Namespace, place: Place) -> Iterator[str]:
    """The lines. Raises UserError for a side that training refuses."""
    sides = [_side(load, options, text, place) for text in options.compare]
    names = [words.layout(side.plan) for side in sides]
    yield from words.wrapped(f"on {words.fleet(sides[0].fleet)}", "  ")
    for letter, text, side in zip("AB", options.compare, sides, strict=True):
        what = f"{letter}: {text or 'as it is'}: {words.model(side.plan)}; {names['AB'.index(letter)]}"
        yield from words.wrapped(what, "   ")
    yield ""
    yield from side_by_side("A", sides[0], "B", sides[1])


def side_by_side(one: str, a: Candidate, other: str, b: Candidate) -> list[str]:
    """Memory by part of two layouts with their names as a table, and time where both fit."""
    sides = (a, b)
    rows: list[Sequence[str]] = [("", one, other, f"{other} - {one}")]
    rows += _rows("memory of a process", [side.memory.device for side in sides], show_bytes)
    rows += _rows("memory of its host", [side.memory.host for side in sides], show_bytes)
    rows.append(("fits", *("yes" if side.memory.fits else "no" for side in sides), ""))
    largest = [str(side.memory.largest_micro_batch or "none") for side in sides]
    rows.append(("largest micro-batch that fits", *largest, ""))
    if all(side.memory.fits for side in sides):
        rows += _rows("a step", [side.time.parts for side in sides], words.seconds)
        rates = [side.time.tokens_per_second for side in sides]
        rows.append(("tokens/s", *(f"{rate:,.0f}" for rate in rates), f"{rates[1] / rates[0] - 1:+.1%}"))
        shares = [side.time.mfu for side in sides]
        rows.append(("MFU", *("?" if share is None else f"{share:.1%}" for share in shares), ""))
    return words.table(rows, right=(1, 2, 3))


def _side(load: Load, options: argparse.Namespace, text: str, place: Place) -> Candidate:
    """The layout that a configuration, or overrides of CONFIG, ask for."""
    config, overrides = options.config, list(options.overrides)
    if text.endswith((".yaml", ".yml")) or Path(text).is_file():
        config = text
    else:
        try:
            overrides += shlex.split(text)
        except ValueError as error:
            what = f"plan: --compare {text[:80]!r}: the quotes in it do not match: {error}"
            raise UserError(what) from error
    subject = open_subject(load, config, overrides, options.tokens)
    return asked_layout(subject, place.ground(subject))


def _rows(
    title: str, sides: Sequence[Sequence[Term]], show: Callable[[float], str]
) -> Iterator[tuple[str, str, str, str]]:
    """A sum, and its parts below it; a part that only one side has is "-" on the other."""
    if not any(sides):
        return
    totals = [sum(term.value for term in side) for side in sides]
    yield title, show(totals[0]), show(totals[1]), _difference(totals[0], totals[1], show)
    values = [{term.name: term.value for term in side} for side in sides]
    for name in dict.fromkeys(term.name for side in sides for term in side):
        a, b = (side.get(name, 0.0) for side in values)
        if a or b:
            yield f"  {name}", show(a) if a else "-", show(b) if b else "-", _difference(a, b, show)


def _difference(a: float, b: float, show: Callable[[float], str]) -> str:
    if a == b:
        return ""
    return f"{'+' if b > a else '-'}{show(abs(b - a))}"
