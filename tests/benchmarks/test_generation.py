"""The comparison of generation, at the size of a test: all contenders find the same tokens."""

from __future__ import annotations

import pytest

from benchmarks.generation import measure, table


@pytest.mark.parametrize(("size", "contenders"), [("toy", 4), ("demo", 2)])
def test_contenders_agree_and_have_a_row_each(size, contenders):
    page = measure(size, batch=2, count=3, rounds=1)
    rows = [line for line in page.splitlines() if line.startswith("| llmkit") or line.startswith("| transf")]
    assert page.startswith(f"{size}: 2 prompts of 20 to 36 tokens, 3 new each") and len(rows) == contenders


def test_ratios_are_those_of_the_same_round():
    page = table("x", {"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]}, 1000)
    assert "| a | 2.000 | 1.00 (1.00 to 1.00) |" in page
    assert "| b | 2.000 | 1.00 (0.50 to 2.00) |" in page
