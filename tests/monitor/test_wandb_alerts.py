"""What somebody should know at once, and nothing else."""

from __future__ import annotations

from llmkit.monitor.wandb_alerts import STALL_SECONDS, Alert, StallWatch, of_event, of_row


def test_the_ends_and_mishaps_of_a_run_are_alerts() -> None:
    fault = of_event({"time": "t", "event": "fault", "step": 7, "reason": "out of memory", "lost_steps": 2})
    assert fault == Alert("ended by a fault", "step: 7; reason: out of memory; lost_steps: 2; t", "ERROR")
    levels = {
        name: of_event({"event": name}) for name in ("stop", "loss_spike", "stall", "done", "save_failed")
    }
    assert {name: alert and alert.level for name, alert in levels.items()} == {
        "stop": "WARN", "loss_spike": "WARN", "stall": "WARN", "done": "INFO", "save_failed": "ERROR",
    }  # fmt: skip


def test_what_is_no_news_is_none() -> None:
    assert [of_event({"event": name}) for name in ("start", "resume", "save", "max_steps", None)] == [
        None
    ] * 5
    assert of_row({"step": 1, "loss": 2.0}) is None


def test_a_void_update_is_one() -> None:
    alert = of_row({"step": 9, "skipped": True})
    assert alert is not None and alert.level == "WARN" and "step 9" in alert.text


def test_titles_are_as_short_as_wandb_wants_them() -> None:
    events = ("loss_spike", "stall", "stop", "fault", "save_failed", "early_stopping", "done")
    assert all(len(alert.title) < 64 for name in events if (alert := of_event({"event": name})))


def test_a_stall_is_told_once_and_again_after_rows() -> None:
    watch = StallWatch(0.0)
    assert watch.check(STALL_SECONDS - 1) is None
    stalled = watch.check(STALL_SECONDS)
    assert stalled is not None and "15 minutes" in stalled.text
    assert watch.check(10 * STALL_SECONDS) is None
    watch.saw_rows(11 * STALL_SECONDS)
    assert watch.check(12 * STALL_SECONDS) is not None


def test_a_run_whose_rows_come_rarely_is_not_stalled() -> None:
    watch = StallWatch(0.0)
    watch.saw_rows(600.0)
    assert watch.check(600.0 + 2 * STALL_SECONDS) is None
    assert watch.check(600.0 + 6000.0) is not None
