"""Parts of a step by a clock that is set, and by events of a GPU that is not there."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch

from llmkit.engine.parts import StepParts


def test_parts_of_a_cpu_are_times_of_the_clock() -> None:
    times = iter([1.0, 1.5, 2.0, 4.0, 8.0, 8.25])
    parts = StepParts(torch.device("cpu"), lambda: next(times))
    for name in ("communication", "optimizer", "communication"):
        with parts.part(name):  # type: ignore[arg-type]
            pass
    assert parts.read() == {"communication": 0.75, "optimizer": 2.0}
    assert parts.read() == {"communication": 0.75, "optimizer": 2.0}


def test_a_part_within_a_part_is_the_outer_ones() -> None:
    times = iter([1.0, 1.5, 2.0, 4.0])
    parts = StepParts(torch.device("cpu"), lambda: next(times))
    for _ in range(2):
        with suppress(ValueError), parts.part("optimizer"):
            with parts.part("communication"):
                pass
            raise ValueError
    assert parts.read() == {"optimizer": 2.5}


def test_a_step_that_marks_nothing_has_no_parts() -> None:
    assert StepParts(torch.device("cpu")).read() == {}


class Stream:
    """A stream whose work ends at `times`, one an event, once it is waited for."""

    def __init__(self, times: list[float]) -> None:
        self.times, self.done = times, False


def test_parts_of_a_gpu_are_events_of_its_stream_that_are_read_once_it_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stream = Stream([10.0, 14.0, 14.0, 20.0])

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing, "torch gives no time without"

        def record(self, on: Stream) -> None:
            assert on is stream
            self.milliseconds = stream.times.pop(0)

        def elapsed_time(self, end: Event) -> float:
            assert stream.done, "torch raises where the work is not done"
            return end.milliseconds - self.milliseconds

        def synchronize(self) -> None:
            raise AssertionError("a step does not wait")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    parts = StepParts(torch.device("cuda"))
    with parts.part("communication"):
        pass
    with parts.part("optimizer"):
        pass
    stream.done = True
    assert parts.read() == {"communication": pytest.approx(0.004), "optimizer": pytest.approx(0.006)}
