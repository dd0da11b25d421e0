"""How long each phase may last."""

from __future__ import annotations

import pytest

from llmkit.watchdog.limits import FACTOR, FLOOR, LONG, LOOKING, UNKNOWN, Limits


def test_the_limit_of_a_step_is_learned_from_steps():
    limits = Limits(None, 300.0, foreign=False)
    limits.saw_step(500.0)  # the first one of a start
    for _ in range(4):
        limits.saw_step(10.0)
    assert limits.of("step") == UNKNOWN
    limits.saw_step(10.0)
    assert limits.of("step") == limits.of("other") == FACTOR * 10.0 - LOOKING


def test_short_steps_have_the_least_limit():
    limits = Limits(None, 300.0, foreign=False)
    limits.saw_step(500.0)  # the first one of a start
    for _ in range(50):
        limits.saw_step(0.01)
    assert limits.of("step") == FLOOR


def test_one_slow_step_of_many_does_not_count_and_a_slower_machine_is_learned():
    limits = Limits(None, 300.0, foreign=False)
    limits.saw_step(500.0)  # the first one of a start
    for step in range(256):
        limits.saw_step(1000.0 if step == 100 else 8.0)
    assert limits.of("step") == FACTOR * 8.0 - LOOKING
    for _ in range(16):
        limits.saw_step(24.0)
    assert limits.of("step") == FACTOR * 24.0 - LOOKING


def test_a_hang_is_named_within_three_times_the_slowest_steps():
    for seconds in (0.1, 4.0, 5.0, 6.0, 100.0):
        limits = Limits(None, 300.0, foreign=False)
        limits.saw_step(500.0)
        for _ in range(300):
            limits.saw_step(seconds)
        assert limits.of("step") + LOOKING <= max(15.0, 3.0 * seconds)


def test_a_given_limit_stays():
    limits = Limits(40.0, 300.0, foreign=False)
    for _ in range(20):
        limits.saw_step(0.1)
    assert limits.of("step") == 40.0


@pytest.mark.parametrize("phase", ["start", "compile", "evaluate", "save"])
def test_what_is_no_step_has_a_limit_of_its_own(phase):
    assert Limits(5.0, 300.0, foreign=False).of(phase) == LONG


def test_data_have_that_of_the_loader_which_names_the_source_first():
    assert Limits(5.0, 300.0, foreign=False).of("data") > 300.0


def test_hooks_of_others_may_take_longer_than_a_step():
    limits = Limits(5.0, 300.0, foreign=True)
    assert (limits.of("step"), limits.of("other")) == (5.0, UNKNOWN)
