"""Spikes: a step whose loss, or gradient norm, is far above those of the steps before it.

How far is measured by a robust z-score (Iglewicz and Hoaglin 1993): the distance from the median of a window
of steps, in units of 1.4826 times the median distance from it, which for normal values is their standard
deviation. Neither is moved by a few outliers.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LEAST_LOSS_SCALE = 0.01
"""Of the median: losses that hardly vary are not called spikes for a small rise."""
LEAST_NORM_SCALE = 0.2
"""Of the logarithm of the gradient norm; at a threshold of 6 a norm must be 3.3 times the median."""


class Spike(NamedTuple):
    """A value far above the others. of: "loss" or "grad_norm". z: its robust z-score."""

    step: int
    of: str
    value: float
    median: float
    z: float

    @property
    def text(self) -> str:
        """For people."""
        what = {"loss": "the loss", "grad_norm": "the gradient norm"}[self.of]
        beside = f"the median before it is {self.median:.4g} (robust z-score {self.z:.1f})"
        return f"step {self.step}: a spike, {what} is {self.value:.4g}; {beside}"


class Series:
    """The newest values of one quantity, by age and by size."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._values: deque[float] = deque()
        self._ordered: list[float] = []
        self._above = False

    def add(self, value: float, threshold: float, least_scale: float, relative: bool) -> tuple[float, float]:
        """(median of the values before, z) where `value` is the first above the threshold, else (0, 0).

        least_scale: of the scale, times the median if `relative`. Before the window is full z is 0.
        """
        found = 0.0, 0.0
        if len(self._values) == self._window:
            median = _middle(self._ordered)
            least = least_scale * abs(median) if relative else least_scale
            above = False
            if value - median > threshold * least:  # else the scale, which takes a pass, is not needed
                spread = _middle(sorted(abs(each - median) for each in self._ordered))
                z = (value - median) / max(1.4826 * spread, least, 1e-12)
                above = z > threshold
                if above and not self._above:
                    found = median, z
            self._above = above
            del self._ordered[bisect_left(self._ordered, self._values.popleft())]
        self._values.append(value)
        insort(self._ordered, value)
        return found

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON; numbers come back exactly."""
        return {"values": list(self._values), "above": self._above}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after `state`; of another window with its newest values."""
        self._values = deque(state["values"][-self._window :])
        self._ordered = sorted(self._values)
        self._above = state["above"]


def _middle(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else 0.5 * (ordered[half - 1] + ordered[half])


class SpikeDetector:
    """Looks at each step after the warm-up of the learning rate, in which nothing is steady.

    window: steps that a value is compared with. threshold: z-score above which it is a spike; 0 = never.
    Of values above the threshold in a row the first one is reported.
    """

    def __init__(self, window: int, threshold: float, warmup_steps: int = 0) -> None:
        self._threshold, self._warmup_steps = threshold, warmup_steps
        self._series = {"loss": Series(window), "grad_norm": Series(window)}

    def add(self, step: int, loss: float, grad_norm: float) -> Spike | None:
        """The spike that this step is, or None. Values that are not finite are passed over."""
        if not self._threshold or step <= self._warmup_steps:
            return None
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return None
        median, z = self._series["loss"].add(loss, self._threshold, LEAST_LOSS_SCALE, relative=True)
        # Norms vary by factors, so their logarithms are compared; a norm of 0 is as good as the smallest.
        logarithm = math.log(max(grad_norm, 1e-30))
        of_norm = self._series["grad_norm"].add(logarithm, self._threshold, LEAST_NORM_SCALE, relative=False)
        if z:
            return Spike(step, "loss", loss, median, z)
        if of_norm[1]:
            return Spike(step, "grad_norm", grad_norm, math.exp(of_norm[0]), of_norm[1])
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {name: series.state() for name, series in self._series.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Goes on after `state`; empty, as of checkpoints without one, the window begins anew."""
        for name, series in self._series.items():
            if name in state:
                series.load_state(state[name])
