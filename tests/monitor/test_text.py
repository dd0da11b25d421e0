"""Figures as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from llmkit.monitor.text import duration, number, shown_bits, thousands, time_of_day


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (356400, "4 d 03 h"),
        (1e8, "1,157 d 09 h"),
    ],
)
def test_durations_have_the_two_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_have_a_unit() -> None:
    assert [thousands(value) for value in (950, 12345.6, 123456, 6.42e6, 3e9, 1.5e13)] == [
        "950", "12.3k", "123k", "6.4M", "3.0G", "15.0T",
    ]  # fmt: skip


def test_what_is_not_finite_or_has_no_text_is_named() -> None:
    assert number(2.5, ".3f") == "2.500" and number(None, ".3f") == "not finite"
    assert shown_bits(1.5) == "1.5000" and shown_bits(None).startswith("none (")


def test_a_time_is_told_as_near_as_it_is() -> None:
    now = datetime(2026, 11, 30, 23, 30, tzinfo=timezone(timedelta(hours=1)))
    assert time_of_day(now + timedelta(minutes=5), now) == "23:35"
    assert time_of_day(now + timedelta(hours=1), now) == "Tue 00:30"
    assert time_of_day(now + timedelta(days=9), now) == "2026-12-09 23:30"
    assert time_of_day(datetime(2026, 11, 30, 21, 0, tzinfo=UTC), now) == "22:00"
