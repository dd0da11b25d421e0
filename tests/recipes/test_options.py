"""Quantities on the command line."""

from __future__ import annotations

import argparse

import pytest

from llmkit.recipes.options import quantity


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("124m", 124e6),
        ("1b", 1e9),
        ("1.5B", 1.5e9),
        ("1e19", 1e19),
        ("350k", 350e3),
        ("2T", 2e12),
        ("4", 4.0),
    ],
)
def test_quantities_have_units(text, value):
    assert quantity(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "0", "-1", "1g", "nan", "inf", "1e999", "b", "1 m", "٣", "9" * 5000])
def test_others_are_refused_in_one_message(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no positive number such as 124m") as error:
        quantity(text)
    assert len(str(error.value)) < 120
