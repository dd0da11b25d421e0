"""Steps as tokens, time and FLOPs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llmkit.report.axes import AXES, axes_of, elapsed, shared_axes, unit_of
from tests.report.runs import EVENTS, START, make_run, row

ODD = {"flops_per_token": 10**400, "tokens_per_step": "many"}


def test_every_axis_of_a_run(tmp_path: Path):
    run = make_run(tmp_path / "run", [row(step, elapsed_seconds=7.0 * step) for step in (10, 20, 40)])
    axes = axes_of(run)
    steps = np.array([0, 15, 40, 41])
    assert tuple(axes) == AXES
    np.testing.assert_array_equal(axes["steps"].of(steps), steps)
    np.testing.assert_allclose(axes["tokens"].of(steps), [0, 1500, 4000, np.nan])
    np.testing.assert_allclose(axes["time"].of(steps), [0, 105, 280, np.nan])
    np.testing.assert_allclose(
        axes["FLOPs"].of(steps), [0, 1.5e6, 4e6, np.nan]
    )  # 1,000 a token, 100 tokens a step


def test_what_a_run_does_not_tell_is_no_axis(tmp_path: Path):
    run = make_run(
        tmp_path / "run", [{"step": 1, "loss": 1.0}], events=[], manifest={"flops_per_token": None}
    )
    assert list(axes_of(run)) == ["steps"]
    other = make_run(tmp_path / "other")
    assert shared_axes([axes_of(run), axes_of(other)]) == list(AXES)


def test_time_of_an_older_run_is_that_of_its_events(tmp_path: Path):
    run = make_run(tmp_path / "run")
    seconds = elapsed(run)
    assert seconds is not None
    # Saved at step 20 after 120 s; steps up to 30 were lost; resumed there after 600 s, done after 845 s.
    assert dict(zip(seconds.steps.tolist(), seconds.values.tolist(), strict=True)) == {0: 0, 20: 600, 40: 845}


def test_rows_after_the_last_event_take_the_time_of_their_steps(tmp_path: Path):
    run = make_run(tmp_path / "run", events=EVENTS[:2])
    seconds = elapsed(run)
    assert seconds is not None and seconds.steps[-1] == 40
    assert seconds.at(np.array([20, 21, 40])) == pytest.approx([120, 122, 160])


@pytest.mark.parametrize("events", [[], [START | {"time": "?"}], [{"event": "save", "step": None}]])
def test_events_without_times_tell_nothing(tmp_path: Path, events):
    assert elapsed(make_run(tmp_path / "run", events=events)) is None


def test_a_clock_that_was_set_back_makes_no_time_negative(tmp_path: Path):
    back = {"time": "2026-11-29T00:30:00.000+00:00", "event": "save", "step": 40}
    seconds = elapsed(make_run(tmp_path / "run", [], events=[*EVENTS[:2], back]))
    assert seconds is not None and seconds.values.tolist() == [0, 120, 120]


def test_units():
    assert unit_of("time", "tokens", 60.0) == (1.0, "seconds since the first start")
    assert unit_of("time", "tokens", 7200.0) == (3600.0, "hours since the first start")
    assert unit_of("tokens", "pairs", 9.0) == (1.0, "pairs")
    assert unit_of("FLOPs", "pairs", 9.0) == (1.0, "FLOPs")
