"""How a time budget becomes a number of steps."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.loop import budget
from llmkit.loop.budget import Budget


def plan(times: list[float], deadline: float, heldout_tokens=0, evaluate_every=0, warmup_steps=0):
    """The plan after steps that took `times` seconds, from time 0 on; None if there was none."""
    chooser = Budget(deadline, heldout_tokens, evaluate_every, warmup_steps, now=0.0)
    now = 0.0
    for step, seconds in enumerate(times, start=1):
        now += seconds
        found = chooser.after_step(step, 1000, now)
        if found is not None:
            return found
    return None


def test_the_first_two_steps_are_not_timed():
    found = plan([30.0, 5.0, *[0.5] * 8], deadline=139.0 + budget.END_SECONDS)
    assert found.step_seconds == pytest.approx(0.5)
    assert found.max_steps == 10 + int(100 * budget.MARGIN / 0.5)


def test_one_slow_step_does_not_shorten_the_run():
    found = plan([1.0, 1.0, *[0.5] * 7, 20.0], deadline=1000.0)
    assert found.step_seconds == 0.5


def test_evaluations_are_paid_for():
    plain = plan([1.0] * 10, deadline=1000.0)
    once = plan([1.0] * 10, deadline=1000.0, heldout_tokens=30_000)
    often = plan([1.0] * 10, deadline=1000.0, heldout_tokens=30_000, evaluate_every=10)
    assert plain.max_steps - once.max_steps == pytest.approx(10 * budget.MARGIN, abs=1)
    assert often.max_steps - 10 == pytest.approx((once.max_steps - 10) / 2, abs=1)


def test_nothing_is_planned_before_enough_steps_were_timed():
    assert plan([1.0] * 9, deadline=1000.0) is None


def test_the_whole_warm_up_is_timed_unless_it_is_long():
    times = [1.0, 1.0, *[2.0] * 10, *[1.0] * 200]
    assert plan(times, deadline=10_000.0, warmup_steps=40).step_seconds == 1.0
    assert plan(times[:41], deadline=10_000.0, warmup_steps=42) is None
    early = plan(times, deadline=200.0, warmup_steps=10_000)
    assert early.step_seconds == 2.0
    assert early.max_steps < 110


def test_a_budget_that_is_over_is_an_error_that_says_how_long_a_step_takes():
    with pytest.raises(UserError, match=r"a step takes 7.00 s"):
        plan([7.0] * 10, deadline=30.0)
    with pytest.raises(UserError, match=r"too short on this machine: after 1 steps no time is left"):
        plan([7.0], deadline=5.0)
