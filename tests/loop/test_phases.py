"""Seconds of training, without what is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmkit.loop.phases import Phases, Span


def clock(*times: float) -> Iterator[float]:
    return iter(times)


def test_saves_do_not_count_and_waiting_is_told_apart() -> None:
    times = clock(0.0, 10.0, 13.0, 20.0, 27.0, 30.0, 31.0)
    phases = Phases(lambda: next(times))  # 0
    with phases.span("data"):  # 10 to 13
        pass
    with phases.span("save"):  # 20 to 27
        pass
    assert phases.read() == (23.0, 3.0)  # at 30
    assert phases.read() == (1.0, 0.0)  # at 31
    assert phases.seconds == {"data": 3.0, "save": 7.0}


def test_a_span_inside_another_interrupts_it() -> None:
    times = clock(0.0, 1.0, 3.0, 8.0, 9.0)
    phases = Phases(lambda: next(times))
    with phases.span("step", limit=60.0):
        with phases.span("save"):
            assert phases.current == Span("save", 3.0)
        assert phases.current == Span("step", 1.0, 60.0)
    assert phases.current is None
    assert phases.seconds == {"step": 3.0, "save": 5.0}


def test_a_phase_that_fails_is_recorded() -> None:
    times = clock(0.0, 1.0, 3.0)
    phases = Phases(lambda: next(times))
    with pytest.raises(ValueError), phases.span("evaluate"):
        raise ValueError
    assert (phases.current, phases.seconds) == (None, {"evaluate": 2.0})
