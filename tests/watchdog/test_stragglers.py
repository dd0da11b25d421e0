"""Ranks that are slower than the others."""

from __future__ import annotations

from llmkit.watchdog.stragglers import WINDOW_SECONDS, Stragglers


def reports(rates: list[list[float]], steps: int = 10, seconds: float = WINDOW_SECONDS) -> list[list[int]]:
    """The stragglers after each report; rates: of each report, seconds a step of each rank."""
    watch, own, found = Stragglers(steps), [0.0] * len(rates[0]), []
    watch.look(0.0, dict.fromkeys(range(len(own)), (0, 0.0)))
    for number, rate in enumerate(rates, start=1):
        own = [before + steps * each for before, each in zip(own, rate, strict=True)]
        state = {rank: (number * steps, each) for rank, each in enumerate(own)}
        found.append([each.rank for each in watch.look(number * seconds, state)])
    return found


def test_a_slow_rank_is_named_at_the_second_report_and_once():
    assert reports([[1.0, 1.0, 1.0], *[[1.0, 4.0, 1.1]] * 4]) == [[], [], [1], [], []]


def test_a_rank_that_recovers_may_be_named_again():
    slow, even = [1.0, 2.0], [1.0, 1.0]
    assert reports([slow, slow, even, slow, slow]) == [[], [1], [], [], [1]]


def test_noise_names_nobody():
    assert reports([[1.0, 1.4, 0.8], [1.6, 1.0, 1.0], [1.0, 1.0, 1.7], [1.0, 1.0, 1.0]] * 3) == [[]] * 12


def test_a_report_lasts_long_enough():
    assert reports([[1.0, 4.0]] * 4, seconds=WINDOW_SECONDS / 4) == [[]] * 4


def test_one_rank_has_nobody_to_be_compared_with():
    assert reports([[1.0]] * 3) == [[]] * 3


def test_the_figures_are_those_of_a_step():
    watch = Stragglers(2)
    watch.look(0.0, {0: (0, 0.0), 1: (0, 0.0)})
    watch.look(10.0, {0: (2, 2.0), 1: (2, 8.0)})
    (found,) = watch.look(20.0, {0: (6, 6.0), 1: (6, 24.0)})
    assert tuple(found) == (1, 4.0, 1.0)


def test_milliseconds_name_nobody():
    assert reports([[0.004, 0.012]] * 4) == [[]] * 4
