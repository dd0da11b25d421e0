"""Hours, energy, money and carbon dioxide of a run, counted by hand."""

from __future__ import annotations

import pytest

from llmkit.estimate.expense import expense
from llmkit.monitor.cost import Prices


def test_what_a_run_comes_to():
    found = expense(3600.0, 8, 700.0, Prices(per_device_hour=2.0, per_kwh=0.5, pue=1.5, grid=400.0))
    assert found.device_hours == pytest.approx(8.0)
    assert found.kwh == pytest.approx(5.6)
    assert found.money == pytest.approx(8 * 2.0 + 5.6 * 1.5 * 0.5)
    assert found.grams == pytest.approx(5.6 * 1.5 * 400.0)


def test_what_is_not_known_is_left_open():
    found = expense(3600.0, 8, None, Prices(per_kwh=0.5, grid=400.0))
    assert (found.kwh, found.money, found.grams) == (None, None, None)
    assert expense(3600.0, 1, 700.0, Prices()).money is None
