"""How a time budget becomes a number of steps."""

from __future__ import annotations

import pytest

from llmkit.errors import UserError
from llmkit.loop import budget
from llmkit.loop.budget import Budget, BudgetWatch, StepPlan


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
    with pytest.raises(UserError, match=r"too short on this machine: after 1 step no time is left"):
        plan([7.0], deadline=5.0)


def watched(times: list[float], deadline: float, max_steps: int, pauses=0.0, saves=0.0):
    """(step, plan) of the first new plan of a run that was planned at step 0; None if there was none.

    pauses: seconds after every hundredth step.
    """
    watch, now, paused = BudgetWatch(deadline, 10.0, 0, max_steps, 0.0, pauses / 100), 0.0, 0.0
    for step, seconds in enumerate(times, start=1):
        now += seconds + paused
        if (found := watch.after_step(step, max_steps, now, paused, saves)) is not None:
            return step, found
        paused = 0.0 if step % 100 else pauses
    return None


def test_steps_that_last_as_long_as_planned_are_not_chosen_anew():
    assert watched([1.0] * 390, deadline=410.0, max_steps=390) is None


def test_slower_steps_become_fewer_and_faster_ones_more():
    left = 410.0 - 10.0 - 9 * 1.2
    assert watched([1.2] * 390, 410.0, 390) == (
        9,
        StepPlan(9 + int(left / 1.2 * budget.MARGIN), pytest.approx(1.2), 10.0),
    )
    step, plan = watched([0.8] * 390, 410.0, 390)
    assert step == 9 and plan.max_steps == 9 + int((410.0 - 10.0 - 9 * 0.8) / 0.8 * budget.MARGIN)


def test_pauses_are_spread_over_all_steps():
    """Evaluations of 20 seconds each 100 steps, expected and seen."""
    assert watched([1.0] * 330, 410.0, 330, pauses=20.0) is None
    step, plan = watched([1.0] * 380, 410.0, 380, pauses=20.0)
    assert step == 9 and plan.step_seconds == pytest.approx(1.2)
    watch = BudgetWatch(410.0, 10.0, 0, 380, now=0.0)
    assert watch.after_step(9, 380, 9.0) is None, "none is expected"
    plan = watch.after_step(18, 380, 28.0, paused=10.0)
    assert plan is not None and plan.step_seconds == pytest.approx(1.0 + 10.0 / 18)


def test_a_save_that_takes_long_is_paid_for():
    assert watched([1.0] * 390, deadline=410.0, max_steps=390, saves=15.0) is not None


def test_a_run_that_could_only_be_hurried_through_is_left_alone():
    assert watched([2.5] * 160, deadline=410.0, max_steps=390) is None


def test_several_small_losses_of_time_add_up_to_a_large_one():
    """A machine that gets slower and slower: steps are given up until half of their number is left."""
    watch, now, max_steps, plans = BudgetWatch(410.0, 10.0, 0, 390, now=0.0), 0.0, 390, 0
    for step in range(1, 391):
        now += 1.0 + 0.02 * step
        if now > 400.0:
            break
        if (found := watch.after_step(step, max_steps, now)) is not None:
            assert found.max_steps < max_steps
            max_steps, plans = found.max_steps, plans + 1
    assert plans > 2 and step < max_steps


def test_faster_steps_become_no_more_than_the_data_last_for():
    watch = BudgetWatch(410.0, 10.0, 0, 100, 0.0)
    plan = watch.after_step(9, 100, 9.0, most=150)
    assert plan is not None and plan.max_steps == 150
    assert watch.after_step(18, 150, 18.0, most=150) is None, "that is no other number"
    slower = watch.after_step(27, 150, 60.0, most=150)
    assert slower is not None and slower.max_steps < 150
