"""Seconds of training, without what is none."""

from __future__ import annotations

from llmkit.loop import clock as module
from llmkit.loop.clock import Clock


def test_pauses_do_not_count_and_waiting_is_told_apart(monkeypatch):
    times = iter([0.0, 10.0, 13.0, 20.0, 27.0, 30.0, 31.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(times))
    clock = Clock()  # 0
    with clock.waiting():  # 10 to 13
        pass
    with clock.paused():  # 20 to 27
        pass
    assert clock.read() == (23.0, 3.0)  # at 30
    assert clock.read() == (1.0, 0.0)  # at 31
