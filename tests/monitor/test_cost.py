"""Money and carbon dioxide, from hours and energy."""

from __future__ import annotations

import pytest

from llmkit.config.monitor_section import Cost, Monitor
from llmkit.monitor.cost import Prices, Spent, for_the_whole_run, money, spent_until_now


def test_a_price_for_hours_one_for_energy_or_both() -> None:
    assert Prices(per_device_hour=2.0).money(3.0, None) == pytest.approx(6.0)
    assert Prices(per_kwh=0.5, pue=1.2).money(3.0, 10.0) == pytest.approx(6.0)
    assert Prices(per_device_hour=2.0, per_kwh=0.5).money(3.0, 10.0) == pytest.approx(11.0)
    assert Prices(per_kwh=0.5).money(3.0, None) is None
    assert Prices().money(3.0, 10.0) is None


def test_carbon_needs_energy_and_a_grid() -> None:
    assert Prices(grid=400.0, pue=1.1).grams(2.0) == pytest.approx(880.0)
    assert Prices(grid=400.0).grams(None) is None and Prices().grams(2.0) is None


def test_prices_are_those_of_the_settings() -> None:
    monitor = Monitor(cost=Cost(per_kwh=0.3, currency="EUR"), pue=1.5, grid_gco2_per_kwh=50.0)
    assert Prices.of(monitor) == Prices(None, 0.3, "EUR", 1.5, 50.0)
    assert Prices.of(monitor).need_energy and not Prices.of(Monitor()).need_energy


def test_each_part_of_a_run_is_paid_at_the_price_of_its_time() -> None:
    first = Spent().plus(2.0, 1.0, Prices(per_device_hour=1.0))
    assert first == Spent(2.0, 1.0, 2.0, None)
    second = first.plus(1.0, 2.0, Prices(per_device_hour=3.0, grid=100.0))
    assert second == Spent(3.0, 3.0, 5.0, 300.0)


def test_what_had_no_price_is_paid_at_that_of_now() -> None:
    prices = Prices(per_device_hour=3.0, per_kwh=0.5)
    assert Spent(2.0, 4.0).plus(1.0, None, prices).cost == pytest.approx(11.0)


def test_energy_that_was_not_measured_adds_nothing() -> None:
    assert Spent(1.0, 2.0).plus(1.0, None, Prices()) == Spent(2.0, 2.0)
    assert Spent().plus(1.0, None, Prices()) == Spent(1.0)


def test_earlier_starts_are_taken_from_rows_and_events() -> None:
    rows = [
        {"step": 1, "device_hours": 1.0, "energy_kwh": None},
        {"step": 2, "device_hours": 2.0, "cost": 4.0},
    ]
    events = [
        {"event": "start", "spent": {"device_hours": 0.0, "energy_kwh": None}},
        {"event": "stop", "spent": {"device_hours": 2.5, "energy_kwh": 0.25, "cost": 5.0}},
        {"event": "save"},
        {"event": "odd", "spent": "much"},
    ]
    assert spent_until_now(rows, events) == Spent(2.5, 0.25, 5.0, None)
    assert spent_until_now([], []) == Spent()


def test_the_whole_run_goes_on_as_it_went() -> None:
    assert for_the_whole_run(12.0, 200, 1000) == pytest.approx(60.0)
    assert for_the_whole_run(12.0, 200, 150) == pytest.approx(12.0)
    assert for_the_whole_run(12.0, 0, 1000) is None and for_the_whole_run(12.0, 200, None) is None


def test_amounts_keep_two_digits() -> None:
    prices = Prices(currency="EUR")
    assert [money(amount, prices) for amount in (1234.567, 12.3, 0.0123)] == [
        "1234.57 EUR", "12.30 EUR", "0.012 EUR",
    ]  # fmt: skip
