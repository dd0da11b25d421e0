"""Figures and layouts in few letters."""

from __future__ import annotations

import pytest

from llmkit.estimate.devices import Hardware
from llmkit.estimate.term import Term
from llmkit.planner import words


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (2**30, "bytes", "1.0 GiB"), (42.5e9, "bytes/s", "42.5 GB/s"), (0.0123, "s", "12.3 ms"),
        (7.589, "s", "7.59 s"), (3700, "s", "1 h 01 min"), (0.0123, "share", "1.23%"),
        (1234.5, "kWh", "1,234 kWh"), (12345.7, "USD", "12,346 USD"),
    ],
)  # fmt: skip
def test_values(number, unit, text):
    assert words.value(Term("x", number, unit, "")) == text


def test_fleets():
    hardware = Hardware()
    assert words.fleet(hardware.fleet("h100", 1)) == "1 x h100 (one node)"
    assert words.fleet(hardware.fleet("h100", 8)) == "8 x h100 (one node; nvlink4 inside)"
    many = words.fleet(hardware.fleet("a100", 8, 128))
    assert many == "1,024 x a100 (128 nodes of 8; nvlink3 inside, ib-hdr between)"


def test_tables_have_columns():
    assert words.table([("a", "1", "x"), ("bcd", "20", "")], right=(1,)) == ["a     1  x", "bcd  20"]
    assert words.table([]) == []
