"""Seconds of each phase, by a clock that is set."""

from __future__ import annotations

import pytest

from llmkit.loop.phases import NAMES, Name, Phases, Span


class Clock:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def spend(clock: Clock, phases: Phases, name: Name, seconds: float) -> None:
    with phases.span(name):
        clock.now += seconds


def test_every_second_is_that_of_one_phase(clock: Clock) -> None:
    phases = Phases(clock, began=-5.0)
    clock.now = 10.0
    spend(clock, phases, "start", 3.0)
    clock.now = 20.0
    spend(clock, phases, "evaluate", 2.0)  # an evaluation that was due, before the first step
    clock.now = 25.0
    spend(clock, phases, "data", 1.0)
    spend(clock, phases, "step", 4.0)
    clock.now = 37.0
    spend(clock, phases, "save", 7.0)
    clock.now = 48.0
    expected = {"start": 28.0, "evaluate": 2.0, "data": 1.0, "step": 4.0, "save": 7.0, "other": 11.0}
    assert phases.totals() == expected | {"compile": 0.0}
    assert sum(phases.totals().values()) == clock.now + 5.0


def test_a_reading_has_what_was_since_the_last_one(clock: Clock) -> None:
    phases = Phases(clock)
    spend(clock, phases, "step", 2.0)
    assert phases.read()["step"] == 2.0
    with phases.span("step"):
        clock.now += 1.0
        assert phases.read() == dict.fromkeys(NAMES, 0.0) | {"step": 1.0}, "what is under way, too"
        clock.now += 3.0
    assert phases.read()["step"] == 3.0
    assert phases.totals()["step"] == 6.0


def test_a_span_inside_another_interrupts_it(clock: Clock) -> None:
    phases = Phases(clock)
    with phases.span("step", limit=60.0):
        clock.now = 2.0
        with phases.span("save"):
            clock.now = 7.0
            assert phases.current == Span("save", 2.0)
        assert phases.current == Span("step", 0.0, 60.0)
        clock.now = 8.0
    assert phases.current is None
    assert {name: seconds for name, seconds in phases.totals().items() if seconds} == {
        "step": 3.0,
        "save": 5.0,
    }


def test_a_phase_may_turn_out_to_be_another(clock: Clock) -> None:
    phases = Phases(clock)
    with phases.span("step", limit=60.0):
        clock.now = 2.0
        phases.rename("compile")
        assert phases.current == Span("compile", 0.0, 60.0)
    assert (phases.totals()["step"], phases.totals()["compile"]) == (0.0, 2.0)


def test_a_phase_that_fails_is_recorded(clock: Clock) -> None:
    phases = Phases(clock)
    with pytest.raises(ValueError), phases.span("evaluate"):
        clock.now = 2.0
        raise ValueError
    assert (phases.current, phases.totals()["evaluate"]) == (None, 2.0)
