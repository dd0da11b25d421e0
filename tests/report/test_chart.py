"""Charts: what a path shows of many points, scales, ticks, texts of numbers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from llmkit.report.chart import BINS, SIZE, Curve, Mark, Scale, alike, draw, path, short, smooth


def points(d: str) -> list[list[tuple[int, int]]]:
    """The points of an SVG path, a list for each piece of line."""
    pieces: list[list[tuple[int, int]]] = []
    for command, a, b in re.findall(r"([Ml])(-?\d+) ?(-?\d+)", d):
        if command == "M":
            pieces.append([(int(a), int(b))])
        else:
            pieces[-1].append((pieces[-1][-1][0] + int(a), pieces[-1][-1][1] + int(b)))
    return pieces


def test_a_short_curve_keeps_every_point_and_its_gaps():
    x = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    y = np.array([5.0, -3.0, np.nan, 7.4, 7.6])
    assert points(path(x, y)) == [[(0, 5), (10, -3)], [(30, 7), (40, 8)]]
    assert points(path(x, y, dots=True)) == [[(0, 5)], [(10, -3)], [(30, 7)], [(40, 8)]]
    assert path(x, np.full(5, np.nan)) == ""


def test_of_many_points_every_spike_and_every_gap_stays():
    x = np.linspace(0, SIZE, 100_000)
    y = np.full(x.size, 500.0)
    y[12_345], y[54_321], y[77_777] = 1.0, 999.0, np.nan
    d = path(x, y)
    found = points(d)
    flat = [point for piece in found for point in piece]
    assert (123, 1) in flat and (543, 999) in flat
    assert len(found) == 2 and found[1][0][0] == 778
    assert len(flat) <= 3 * BINS and len(d) < 20_000
    xs = [at for at, _ in flat]
    assert xs == sorted(xs)


def test_smoothing_keeps_a_slope_and_what_is_missing():
    y = np.arange(200.0)
    np.testing.assert_allclose(smooth(y), y)
    noisy = y + np.where(np.arange(200) % 2, 1.0, -1.0)
    assert np.abs(smooth(noisy, 0.1) - y)[10:-10].max() < 0.1
    assert np.abs(smooth(np.tile([1.0, -1.0], 20_000))).max() < 0.02  # at its ends too
    y[50] = np.nan
    found = smooth(y)
    assert np.isnan(found[50]) and np.isfinite(np.delete(found, 50)).all()
    np.testing.assert_array_equal(smooth(np.array([3.0, 1.0])), [3.0, 1.0])


def test_one_point_is_a_dot():
    one = [Curve("a", np.array([5.0, 9.0]), np.array([np.nan, 1.0]), kind=kind) for kind in ("line", "dots")]
    plot = draw([*one, Curve("b", np.array([1.0, 9.0]), np.array([1.0, 1.0]), 1)])
    assert plot is not None
    assert [classes for classes, _, _ in plot.paths] == ["dots c0", "line c1"]


def test_there_are_no_half_steps():
    plot = draw([Curve("a", np.array([1.0, 3.0]), np.array([1.0, 2.0]))], counts=True)
    assert plot is not None and [text for _, text in plot.x.ticks()] == ["0", "1", "2", "3"]


def test_marks_lie_where_the_curve_is_and_x_begins_at_0():
    plot = draw(
        [Curve("a", np.array([50.0, 200.0]), np.array([1.0, 2.0]))],
        [Mark(50, "save", "x"), Mark(900, "save", "y")],
    )
    assert plot is not None and plot.marks == [(25.0, "save", "x")]
    ((classes, name, d),) = plot.paths
    assert (classes, name) == ("line c0", "a")
    low, high = points(d)[0]
    assert (low[0], high[0]) == (250, 1000) and low[1] > 900 > 100 > high[1]


def test_a_first_loss_does_not_flatten_the_rest_but_a_spike_is_within_the_frame():
    x = np.arange(1.0, 1001.0)
    y = np.full(1000, 3.0)
    y[:5], y[500] = 11.0, 7.0
    plot = draw([Curve("loss", x, y)])
    assert plot is not None and 7.0 < plot.y.high < 8.0
    assert min(at for _, at in points(plot.paths[0][2])[0]) == -SIZE or plot.y.high < 11
    longer = draw([Curve("loss", x, y), Curve("other", 100 * x, np.full(1000, 4.0))], reach=2e5)
    assert longer is not None and longer.y.high < 8.0 and longer.x.high == 2e5
    few = draw([Curve("loss", x[:50], y[:50])])
    assert few is not None and few.y.high > 11.0


def test_nothing_to_show_is_no_plot():
    assert draw([]) is None
    assert draw([Curve("a", np.array([1.0]), np.array([np.nan]))]) is None


@pytest.mark.parametrize(
    ("values", "low", "high", "log"),
    [
        ([4.0, 4.0], 3.8, 4.2, False),
        ([0.0, 0.0], -1.0, 1.0, False),
        ([1e-8, 1.0, 100.0], 100 / 1e6 / 1.05, 105.0, True),
        ([0.0, 100.0], -5.0, 105.0, False),
    ],
)
def test_the_range_of_y(values: list[float], low: float, high: float, log: bool):
    y = np.array(values)
    plot = draw([Curve("a", np.arange(y.size) + 1.0, y)], log=True)
    assert plot is not None and plot.y.log == log
    assert (plot.y.low, plot.y.high) == pytest.approx((low, high))
    assert 2 <= len(plot.y.ticks()) <= 9


def test_ticks_are_round_numbers_in_their_places():
    assert Scale(0.0, 3000.0, most=7).ticks() == [
        (0.0, "0"), (16.67, "500"), (33.33, "1000"), (50.0, "1500"), (66.67, "2000"), (83.33, "2500"),
        (100.0, "3000"),
    ]  # fmt: skip
    assert [text for _, text in Scale(0.0, 7200.0, unit=(3600.0, "hours")).ticks()] == [
        "0",
        "0.5",
        "1.0",
        "1.5",
        "2.0",
    ]
    assert [text for _, text in Scale(0.1, 100.0, log=True).ticks()] == [
        "0.1",
        "0.3",
        "1",
        "3",
        "10",
        "30",
        "100",
    ]
    assert [text for _, text in Scale(0.27, 0.33, log=True).ticks()] == ["0.28", "0.3", "0.32"]


def test_numbers_are_short():
    assert [short(value) for value in (0, 1234, 12345, 3.5e7, 2.5e20, 0.0031, 4e-5, -2.0, float("nan"))] == [
        "0", "1234", "12.35k", "35M", "2.5e20", "0.0031", "4e-5", "-2", "not finite"
    ]  # fmt: skip
    assert alike([0.0, 5e-5, 1e-4]) == ["0", "0.5e-4", "1.0e-4"]
    assert alike([0.0, 5e5, 1e6]) == ["0", "0.5M", "1.0M"]
    assert alike([3.0]) == ["3"]
