"""Columns of time and speed against values worked out by hand, on a clock that is set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmkit.loop.phases import NAMES, Name, Phases
from llmkit.loop.step_times import Speed, StepTimes

SPEED = Speed(tokens_per_step=128, flops_per_token=1000.0, peak=64_000.0, label="measured", devices=2)
MEANS = (
    "step_seconds", "data_seconds", "tokens_per_second", "tokens_per_second_per_device", "mfu", "mfu_causal",
)  # fmt: skip


class Timeline:
    """A start of a run, phase by phase."""

    def __init__(self, speed: Speed = SPEED) -> None:
        self.now = 0.0
        self.phases = Phases(lambda: self.now)
        self.times = StepTimes(self.phases, speed)

    def spend(self, name: Name, seconds: float) -> None:
        with self.phases.span(name):
            self.now += seconds

    def step(
        self, computes: bool = True, between: float = 0.0, causal: float | None = None, **phases: float
    ) -> None:
        """A step that spends so much in each phase, and `between` in none."""
        for name in NAMES:
            if name in phases:
                self.spend(name, phases[name])
        self.now += between
        self.times.after_step(computes, causal)


def take(line: Timeline) -> dict[str, Any]:
    return line.times.take()


def test_means_and_sums_of_a_row() -> None:
    line = Timeline()
    line.spend("start", 100.0)
    line.step(data=20.0, step=50.0)  # which warms caches
    line.step(data=0.5, step=1.5, between=0.25, save=30.0)
    line.step(data=1.0, step=2.0, between=0.25)
    line.spend("evaluate", 70.0)
    line.step(data=1.5, step=1.75, between=0.25)
    assert take(line) == {
        "step_seconds": pytest.approx(3.0),  # (2.25 + 3.25 + 3.5) / 3
        "data_seconds": pytest.approx(1.0),
        "tokens_per_second": pytest.approx(128 / 3.0),
        "tokens_per_second_per_device": pytest.approx(64 / 3.0),
        "mfu": pytest.approx(128 / 3.0 * 1000.0 / 128_000.0),
        "mfu_causal": None,
        "mfu_peak": "measured",
        "time/start": 100.0, "time/data": 23.0, "time/compile": 0.0, "time/step": 55.25,
        "time/evaluate": 70.0, "time/save": 30.0, "time/other": 0.75,
    }  # fmt: skip
    line.step(data=0.0, step=4.0)
    second = take(line)
    assert (second["step_seconds"], second["tokens_per_second"]) == (4.0, 32.0)
    assert {name: value for name, value in second.items() if name.startswith("time/") and value} == {
        "time/step": 4.0
    }


def test_rows_right_after_a_start_hold_no_made_up_speed() -> None:
    line = Timeline()
    line.step(step=50.0)
    assert all(take(line)[name] is None for name in MEANS)
    line.step(step=2.0)
    assert take(line)["tokens_per_second"] == 64.0


def test_a_step_that_compiles_counts_in_no_mean() -> None:
    line = Timeline()
    line.step(compile=60.0)
    line.step(step=2.0)
    line.step(data=1.0, compile=30.0, between=1.0)  # of another shape
    line.step(step=2.0)
    row = take(line)
    assert (row["step_seconds"], row["data_seconds"], row["tokens_per_second"]) == (2.0, 0.0, 64.0)
    assert (row["time/compile"], row["time/step"], row["time/data"]) == (90.0, 4.0, 1.0)
    line.step(compile=30.0)
    assert all(take(line)[name] is None for name in MEANS)


def test_a_step_that_computes_nothing_makes_no_speed() -> None:
    line = Timeline()
    line.step(computes=False, step=1.0)
    assert not line.times.warmed_up
    line.step(step=9.0)
    line.step(computes=False, step=1.0)
    line.step(step=3.0)
    row = take(line)
    assert (row["step_seconds"], row["tokens_per_second"]) == (2.0, 32.0)


def test_an_unknown_peak_gives_no_utilization() -> None:
    line = Timeline(Speed(128, 1000.0, 300.0, label="no peak known"))
    line.step(step=1.0)
    line.step(step=1.0, causal=800.0)
    row = take(line)
    assert (row["tokens_per_second"], row["mfu_peak"]) == (128.0, "no peak known")
    assert [row[name] for name in ("mfu", "mfu_causal", "hfu")] == [None] * 3


def test_utilization_of_three_kinds() -> None:
    line = Timeline(replace(SPEED, recomputed=300.0))
    line.step(step=50.0, causal=1e9)
    line.step(step=1.0, causal=600.0)
    line.step(step=1.0, causal=800.0)
    line.step(computes=False, step=2.0, causal=1e9)
    row = take(line)
    rate = 2 * 128 / 4.0
    assert row["mfu"] == pytest.approx(rate * 1000.0 / 128_000.0)
    assert row["mfu_causal"] == pytest.approx(rate * 700.0 / 128_000.0)
    assert row["hfu"] == pytest.approx(rate * 1300.0 / 128_000.0)
    line.step(step=1.0, causal=600.0)
    assert take(line)["mfu_causal"] == pytest.approx(128 * 600.0 / 128_000.0)
