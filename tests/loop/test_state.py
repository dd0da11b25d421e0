"""Counters of a run."""

from __future__ import annotations

import json
import math

from llmkit.loop.state import TrainState


def test_json_brings_everything_back():
    progress = TrainState(step=3, tokens=99, max_steps=10, skipped=1, evaluated_step=2, eval_loss=1.5)
    assert TrainState.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_another_end_keeps_the_place_in_the_schedule_over_json_too():
    progress = TrainState(step=0)
    progress.end_after(100)
    assert (progress.max_steps, progress.pace) == (100, None)
    progress.step = 60
    progress.end_after(80)
    assert progress.pace == (60, 60, 100)
    progress.step = 70
    progress.end_after(90)
    assert (progress.max_steps, progress.pace) == (90, (70, 80.0, 100))
    assert TrainState.from_json(json.loads(json.dumps(progress.to_json()))) == progress
    progress.end_after(3)
    assert progress.max_steps == 70 and progress.finished()


def test_patience_counts_evaluations_without_a_lower_loss():
    progress = TrainState()
    stopped = []
    for loss in (3.0, 2.0, 2.5, 1.9, 1.9, math.nan):
        progress.record_evaluation(loss, patience=2)
        stopped.append(progress.stopped_early)
    assert stopped == [False, False, False, False, False, True]
    assert (progress.best_eval_loss, progress.eval_loss) == (1.9, None)


def test_a_first_loss_that_is_not_finite_is_no_best_one():
    progress = TrainState()
    progress.record_evaluation(math.nan, patience=3)
    progress.record_evaluation(2.0, patience=None)
    assert progress.best_eval_loss == 2.0


def test_losses_that_are_never_finite_end_the_patience():
    progress = TrainState()
    for _ in range(2):
        progress.record_evaluation(math.nan, patience=2)
    assert progress.stopped_early


def test_finished_at_the_last_step_or_when_stopped_early():
    assert not TrainState(step=5).finished()
    assert not TrainState(step=5, max_steps=6).finished()
    assert TrainState(step=6, max_steps=6).finished()
    assert TrainState(step=1, max_steps=6, stopped_early=True).finished()


def test_the_mean_loss_weighs_steps_by_their_targets_and_leaves_out_what_is_not_finite():
    progress = TrainState()
    for loss, targets in ((2.0, 30), (math.nan, 10), (4.0, 10), (0.0, 0)):
        progress.add_loss(loss, targets)
    assert progress.take_mean_loss() == 2.5
    assert progress.take_mean_loss() is None


def test_going_back_keeps_the_end_and_the_patience_of_now():
    """To the checkpoint at which less patience had ended the run."""
    state = TrainState(step=30, max_steps=50, evaluations_without_gain=3)
    earlier = TrainState(step=20, max_steps=40, evaluations_without_gain=2, stopped_early=True)
    state.go_back(earlier, patience=4)
    assert (state.step, state.max_steps, state.finished()) == (20, 50, False)
    state.go_back(TrainState(step=10, max_steps=40, evaluations_without_gain=1), patience=1)
    assert state.step == 10 and state.finished()
