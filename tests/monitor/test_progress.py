"""How far a run is, from its rows and events."""

from __future__ import annotations

from datetime import UTC, datetime

from llmkit.monitor.progress import WALL_ROWS, Evaluation, Progress, shown_loss


def row(step: int, loss: float | None = 3.0, **more: object) -> dict[str, object]:
    return {"step": step, "loss": loss, "step_seconds": 0.5, **more}


def test_the_newest_row_counts_and_a_speed_that_is_not_known_leaves_the_old_one() -> None:
    progress = Progress(max_steps=100)
    progress.take(row(10, tokens_per_second=1000.0))
    progress.take(row(20, loss=2.0, step_seconds=None))
    assert progress.step == 20 and progress.row["loss"] == 2.0
    assert progress.seconds_left == 40.0
    progress.step = 30  # steps that no row is written of
    assert progress.seconds_left == 35.0 and progress.seconds_until(20) == 0.0


def test_numbers_that_are_none_are_not_finite() -> None:
    progress = Progress(max_steps=100)
    for step, loss in enumerate((float("nan"), float("inf"), 10**400, 2.0), start=1):
        progress.take(row(step, loss, tokens_per_second=float("-inf")))
    assert progress.losses.points == [(4, 2.0)] and progress.row["tokens_per_second"] is None


def test_the_time_left_is_not_known_before_the_steps_or_the_speed_are() -> None:
    progress = Progress()
    progress.take(row(1))
    assert progress.seconds_left is None
    progress.take_event({"event": "max_steps", "max_steps": 11})
    assert progress.seconds_left == 5.0
    assert Progress(max_steps=5).seconds_left is None


def test_the_time_left_has_evaluations_and_saves_in_it_and_no_time_between_two_starts() -> None:
    progress = Progress(max_steps=100)
    progress.take(row(10, elapsed_seconds=100.0, restarts=0))
    assert progress.seconds_left == 45.0  # by steps alone
    progress.take(row(20, elapsed_seconds=120.0, restarts=0))
    assert progress.seconds_left == 160.0
    progress.take(row(30, elapsed_seconds=9000.0, restarts=1))
    assert progress.seconds_left == 35.0
    progress.take(row(40, elapsed_seconds=9010.0, restarts=1))
    assert progress.seconds_left == 60.0
    for step in range(50, 50 + 3 * WALL_ROWS):  # what was long ago does not count
        progress.take(row(step, elapsed_seconds=9010.0 + 0.25 * step, restarts=1))
    progress.max_steps = progress.step + 4
    assert progress.seconds_left == 1.0


def test_a_resume_goes_back_to_its_checkpoint_whatever_was_reached_before_the_fault() -> None:
    progress = Progress(max_steps=100)
    for event in ({"event": "fault", "step": 52}, {"event": "resume", "step": 40}):
        progress.take_event(event)
    assert progress.step == 40
    progress.take(row(41))
    assert progress.step == 41 and progress.next_after(10) == 50


def test_evaluations_are_the_last_one_and_the_best_one() -> None:
    progress = Progress()
    for step, loss in ((1, 3.0), (2, 2.0), (3, 2.5), (4, None)):
        progress.take({"step": step, "eval_loss": loss, "eval_bits_per_byte": 1.0})
    assert progress.last_evaluation == Evaluation(4, None, 1.0)
    assert progress.best_evaluation == Evaluation(2, 2.0, 1.0)
    assert progress.row == {}


def test_the_next_save_is_the_next_step_that_divides_and_none_behind_the_end() -> None:
    progress = Progress(max_steps=25)
    progress.step = 10
    assert progress.next_after(10) == 20 and progress.next_after(3) == 12
    assert progress.next_after(0) is None
    progress.step = 20
    assert progress.next_after(10) is None


def test_a_save_may_come_by_the_clock_before_it_comes_by_steps() -> None:
    progress = Progress(max_steps=10_000, save_every=1000, save_minutes=30.0)
    start, now = "2026-11-29T10:00:00+00:00", datetime(2026, 11, 29, 10, 25, tzinfo=UTC)
    assert progress.seconds_until_save(now) is None
    progress.take_event({"event": "start", "time": start})
    assert progress.seconds_until_save(now) is None  # 1000 steps may take less than the rest of 30 minutes
    progress.take(row(1))
    assert progress.seconds_until_save(now) == 300.0
    progress.take(row(999))
    assert progress.seconds_until_save(now) == 0.5
    progress.take_event({"event": "save", "step": 1000, "time": "2026-11-29T10:24:00"})
    progress.step = 1000
    assert progress.seconds_until_save(now) == 500.0
    progress.save_every = 0
    assert progress.seconds_until_save(now) == 29 * 60.0


def test_losses_are_the_means_and_what_is_not_finite_is_no_point() -> None:
    progress = Progress()
    for each in (row(1, 9.0), row(2, 5.0, loss_mean=7.0), row(3, None)):
        progress.take(each)
    assert progress.losses.points == [(1, 9.0), (2, 7.0)]
    assert shown_loss({"loss": None}) is None


def test_what_is_no_row_or_has_no_time_is_left_out() -> None:
    progress = Progress()
    progress.take({"loss": 1.0})
    progress.take({"step": "7", "loss": 1.0})
    assert progress.step == 0
    progress.take_event({"event": "save", "step": 3, "time": "yesterday"})
    assert progress.last_event is not None
    assert (progress.last_event.text, progress.last_event.at) == ("saved step 3", None)
    progress.take_event({"event": "save", "step": 4, "time": "2026-11-29T10:00:00+00:00"})
    assert progress.last_event.at is not None and progress.last_event.at.hour == 10
