"""The table of columns, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.monitor.columns import COLUMNS, OWN_NAMES, column_of, markdown


def test_the_page_is_that_of_the_table() -> None:
    command = "python -c 'from llmkit.monitor.columns import markdown; print(markdown(), end=\"\")'"
    page = Path(__file__).parents[2] / "docs/metrics.md"
    assert page.read_text() == markdown(), f"write it anew: {command} > docs/metrics.md"


def test_each_column_is_listed_once_and_described() -> None:
    names = [column.name for column in COLUMNS]
    assert len(names) == len(set(names))
    assert all(column.meaning and column.scope and "|" not in column.meaning for column in COLUMNS)


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("loss", "loss"),
        ("loss/books", "loss/SOURCE"),
        ("loss_at/0-255", "loss_at/FROM-TO"),
        ("grad_norm/blocks.0", "grad_norm/LAYER"),
        ("eval_loss/books", "eval_loss/SOURCE"),
        ("eval/hellaswag/acc,none", "eval/TASK/METRIC"),
        ("time/data", "time/data"),
        ("loss/", None),
        ("my_own", None),
    ],
)
def test_a_name_belongs_to_one_column(name: str, listed: str | None) -> None:
    found = column_of(name)
    assert (found and found.name) == listed


def test_names_of_families_are_no_names_of_columns() -> None:
    assert "loss" in OWN_NAMES and not any(name != name.lower() for name in OWN_NAMES)
