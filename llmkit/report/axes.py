"""What the steps of a run are in tokens, time and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llmkit.monitor.record import RunRecord
from llmkit.monitor.run_state import time_of
from llmkit.monitor.series import LARGEST_STEP, Series

AxisName = Literal["steps", "tokens", "time", "FLOPs"]
MOST_FLOPS = 1e30
"""Of a token; what a damaged file says beyond it is no axis."""
AXES: tuple[AxisName, ...] = ("steps", "tokens", "time", "FLOPs")
UNITS = (
    (2 * 86400.0, 86400.0, "days"),
    (2 * 3600.0, 3600.0, "hours"),
    (120.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)


@dataclass(frozen=True)
class Axis:
    """An x-axis of a run: `of` maps steps, (n,), to what they are on it."""

    name: AxisName
    known: Series

    def of(self, steps: np.ndarray) -> np.ndarray:
        """Between two known steps in proportion; NaN beyond the last one."""
        if self.name == "steps":
            return steps.astype(np.float64)
        found = np.interp(steps, self.known.steps, self.known.values, left=np.nan, right=np.nan)
        return np.asarray(found)


def axes_of(run: RunRecord) -> dict[AxisName, Axis]:
    """The axes that a run has: FLOPs only where its start has recorded what a token costs."""
    nothing = Series(np.zeros(0, np.int64), np.zeros(0))
    found: dict[AxisName, Axis] = {"steps": Axis("steps", nothing)}
    tokens, seconds = run.columns.get("tokens"), elapsed(run)
    if tokens is not None and tokens.last:
        found["tokens"] = Axis("tokens", _from_zero(tokens))
    if seconds is not None:
        found["time"] = Axis("time", seconds)
    a_token, a_step = (
        _amount(run.manifest.get("flops_per_token")),
        _amount(run.manifest.get("tokens_per_step")),
    )
    if a_token and a_step:
        last = max(1, *(int(each.steps[-1]) for each in run.columns.values())) if run.columns else 1
        found["FLOPs"] = Axis("FLOPs", Series(np.array([0, last]), np.array([0.0, last * a_token * a_step])))
    return found


def _amount(value: object) -> float:
    """What a manifest says of FLOPs or tokens; 0 for anything else."""
    return float(value) if isinstance(value, int | float) and 0 < value < MOST_FLOPS else 0.0


def elapsed(run: RunRecord) -> Series | None:
    """Seconds since the run's first start at some steps; None where nothing tells.

    From the rows; those of older versions do not say it, and the times of events do.
    """
    column = run.columns.get("elapsed_seconds")
    if column is not None and column.last is not None:
        return _from_zero(column)
    return _by_events(run)


def _by_events(run: RunRecord) -> Series | None:
    """By the times at which starts, saves and ends were recorded; what follows by the time of a step."""
    steps: list[int] = []
    times: list[float] = []
    for event in run.events:
        step, time = event.get("step"), time_of(event)
        if type(step) is not int or not 0 <= step <= LARGEST_STEP or time is None:
            continue
        if event.get("event") == "resume":  # steps after it are done again
            while steps and steps[-1] > step:
                del steps[-1], times[-1]
        if not steps or step > steps[-1]:
            steps.append(step)
            times.append(time)
        elif step == steps[-1]:
            times[-1] = max(times[-1], time)
    if not steps:
        return None
    seconds = run.columns.get("step_seconds")
    if seconds is not None and seconds.last is not None and seconds.steps[-1] > steps[-1]:
        later = seconds.steps > steps[-1]
        each = np.diff(seconds.steps[later], prepend=steps[-1])
        taken = np.cumsum(each * np.nan_to_num(seconds.values[later], nan=seconds.last))
        steps += seconds.steps[later].tolist()
        times += (times[-1] + taken).tolist()
    first = next((time for event in run.events if (time := time_of(event)) is not None), times[0])
    return Series(np.array(steps), np.maximum.accumulate(np.array(times) - first).clip(min=0.0))


def _from_zero(column: Series) -> Series:
    """The column with 0 at step 0 and without what is not known."""
    known = np.isfinite(column.values) & (column.steps > 0)
    steps, values = column.steps[known], column.values[known]
    return Series(np.concatenate(([0], steps)), np.concatenate(([0.0], values)))


def unit_of(name: AxisName, counted: str, highest: float) -> tuple[float, str]:
    """What shown numbers of an axis are divided by, and its label.

    counted: what the column `tokens` counts.
    """
    if name == "time":
        _, size, text = next(unit for unit in UNITS if highest >= unit[0])
        return size, f"{text} since the first start"
    if name == "tokens":
        return 1.0, counted
    return 1.0, name


def shared_axes(found: Sequence[dict[AxisName, Axis]]) -> list[AxisName]:
    """The axes that at least one run has, in their order."""
    return [name for name in AXES if any(name in each for each in found)]
