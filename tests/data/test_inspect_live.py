"""What it takes to come to a row of a lane; the rows themselves: test_inspect_rows.py."""

from __future__ import annotations

import itertools

import pytest

from llmkit.data.inspect_live import make_rows, shown_time
from llmkit.data.live.stream import Lane
from llmkit.errors import UserError
from tests.data.live.fakes import live

TEXTS = [[f"text {unit}{k}" for k in range(12)] for unit in range(4)]


def test_rows_of_a_lane_are_its_own() -> None:
    source, reports = live(TEXTS), []
    made = make_rows(source, {1: {0, 7}, 0: {3}}, 300.0, reports.append)
    for lane, numbers in ((0, {3}), (1, {0, 7})):
        own = Lane(source, lane)
        for number in range(8):
            row = next(own)
            if number in numbers:
                traced = made.pop((lane, number))
                assert (traced.row.tokens == row.tokens).all() and traced.row.cursor == row.cursor
                assert traced.start == 8 * number
    assert made == {} and reports == []


def test_what_takes_too_long_is_refused_once_the_speed_is_known() -> None:
    source, reports = live(TEXTS), []
    clock = itertools.count(0.0, 0.5)  # half a second a row
    message = "1,000 rows in 1 of its 2 lanes have to be tokenized for that, which takes about 8 minutes"
    with pytest.raises(
        UserError, match=f"source toy: {message}; wait with --minutes 9, or ask for an earlier"
    ):
        make_rows(source, {0: {999}}, 300.0, reports.append, lambda: next(clock))
    assert next(clock) < 4.0 and reports == []
    clock = itertools.count(0.0, 0.5)
    assert len(make_rows(source, {0: {99}}, 300.0, reports.append, lambda: next(clock))) == 1
    assert reports == [
        "data: source toy: 100 rows in 1 of its 2 lanes have to be tokenized for that, which takes about 50 s"
    ]


def test_times_are_shown_in_their_unit() -> None:
    assert (shown_time(99.4), shown_time(100.0), shown_time(7200.0)) == ("99 s", "2 minutes", "120 minutes")
