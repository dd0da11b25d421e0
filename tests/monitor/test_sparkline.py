"""Curves of blocks."""

from __future__ import annotations

import pytest

from llmkit.monitor.sparkline import ASCII_BLOCKS, BLOCKS, Curve, sparkline


def test_a_falling_line_falls_from_the_highest_block_to_the_lowest() -> None:
    points = [(step, 8.0 - step) for step in range(8)]
    shown = sparkline(points, 8)
    assert (shown[0], shown[-1], len(shown)) == (BLOCKS[-1], BLOCKS[0], 8)
    assert [BLOCKS.index(block) for block in shown] == sorted(map(BLOCKS.index, shown), reverse=True)


def test_two_points_are_a_step_down() -> None:
    assert sparkline([(1, 8.3), (10, 7.8)], 20) == BLOCKS[-1] + BLOCKS[0]


def test_columns_are_spaced_by_steps_not_by_rows() -> None:
    rare, often = [(0, 1.0), (10, 1.0), (20, 1.0), (30, 1.0)], [(step, 0.0) for step in range(31, 40)]
    shown = sparkline([*rare, *often], 4)
    assert shown[:3] == BLOCKS[-1] * 3 and shown[3] in BLOCKS[:3]


def test_the_first_steps_do_not_flatten_all_others() -> None:
    points = [(step, 100.0 if step == 0 else 3.0 - step / 100) for step in range(100)]
    assert len(set(sparkline(points, 20))) >= 6


@pytest.mark.parametrize("points", [[], [(1, 2.0)], [(1, 2.0), (2, 2.0)]])
def test_few_points_and_equal_ones_make_a_flat_line(points: list[tuple[int, float]]) -> None:
    assert sparkline(points, 10) == BLOCKS[0] * len(points)
    assert sparkline(points, 0) == ""


def test_other_letters_where_a_terminal_has_no_blocks() -> None:
    shown = sparkline([(step, float(step)) for step in range(8)], 8, ASCII_BLOCKS)
    assert shown[0] == "_" and shown[-1] == "@" and shown.isascii()


def test_a_curve_of_any_length_is_bounded_and_keeps_its_shape() -> None:
    curve = Curve(64)
    for step in range(1, 10_001):
        curve.add(step, float(step))
    assert 32 <= len(curve.points) <= 64
    assert [step for step, _ in curve.points] == sorted(step for step, _ in curve.points)
    apart = [abs(value - step) for step, value in curve.points]
    assert max(apart) <= 10_000 / 32  # the mean of a point's rows, at the last of their steps
    assert curve.points[-1][0] > 9_500
