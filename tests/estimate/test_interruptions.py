"""The interval of saves against a search for the least loss, and the published rates."""

from __future__ import annotations

from random import Random

import pytest

from llmkit.estimate.interruptions import (
    DEVICE_HOURS,
    daly_interval,
    lost_share,
    seconds_between,
    young_interval,
)


def test_the_rate_is_that_of_the_published_run():
    """Llama 3: an interruption about every three hours on 16,384 GPUs."""
    assert seconds_between(DEVICE_HOURS, 16_384) / 3600 == pytest.approx(54 * 24 / 419)
    assert round(DEVICE_HOURS) == 50_677


@pytest.mark.parametrize(("stall", "between"), [(2.0, 11_000.0), (30.0, 3600.0), (120.0, 86_400.0)])
def test_no_other_interval_loses_less(stall, between):
    intervals = [stall * 1.02**n for n in range(700)]
    best = min(intervals, key=lambda each: lost_share(each, stall, between))
    assert young_interval(stall, between) == pytest.approx(best, rel=0.2)
    assert daly_interval(stall, between) == pytest.approx(best, rel=0.08)


def test_daly_comes_to_young_where_saves_are_quick():
    assert daly_interval(0.01, 1e6) == pytest.approx(young_interval(0.01, 1e6), rel=1e-3)


def test_saves_that_take_longer_than_failures_let_live():
    assert daly_interval(1000.0, 400.0) == 400.0
    assert 0.98 < lost_share(400.0, 1000.0, 400.0) < 1.0
    assert lost_share(400.0, 1000.0, 0.5) == 1.0, "no number overflows"


@pytest.mark.parametrize(("interval", "between"), [(60.0, 1e6), (300.0, 3000.0), (50.0, 40.0)])
def test_what_is_lost_is_what_a_simulation_loses(interval, between):
    random, stall, restart, spent = Random(0), 5.0, 20.0, 0.0
    intervals = 20_000
    for _ in range(intervals):
        while (failure := random.expovariate(1.0 / between)) < interval + stall:
            spent += failure + restart
            while (again := random.expovariate(1.0 / between)) < restart:  # a restart that fails, too
                spent += again
        spent += interval + stall
    assert lost_share(interval, stall, between, restart) == pytest.approx(
        1.0 - intervals * interval / spent, rel=0.03
    )
