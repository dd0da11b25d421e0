"""The loss of compute-optimal runs as a function of their FLOPs: L = E + A / C^alpha.

The form of Hoffmann et al. 2022 along the line of optimal sizes, where N and D are both powers of C. Fitted
by the Huber loss of log-residuals, as there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HUBER = 1e-3
"""Log-residuals beyond this count linearly."""
EXPONENTS = np.geomspace(0.01, 1.0, 400)
"""Among which alpha is found; published ones are 0.05 (Kaplan et al. 2020) to 0.3."""
NOISE = 0.003
"""Relative standard deviation of a run's loss that is assumed at least: that of its seeds, about."""
DRAWS, SHARE = 200, 0.9
"""Fits to losses that are moved at random, and the share of their predictions that an interval holds."""


@dataclass(frozen=True)
class Law:
    """L = floor + scale / (C / unit)^exponent, in nats; C in FLOPs."""

    floor: float
    scale: float
    exponent: float
    unit: float

    def loss(self, flops: float) -> float:
        """The loss that is predicted for so many FLOPs."""
        return self.floor + self.scale * (flops / self.unit) ** -self.exponent


def fit(flops: Sequence[float], losses: Sequence[float]) -> Law:
    """The law nearest to these runs, with floor and scale not below 0; three at least are needed.

    For each exponent the other two are linear: they are found by least squares of relative residuals,
    weighted anew until that is their Huber loss.
    """
    assert len(flops) == len(losses) >= 3
    unit = float(np.exp(np.mean(np.log(flops))))
    x, y = np.asarray(flops) / unit, np.asarray(losses)
    best, found = np.inf, (0.0, 0.0, 0.0)
    for exponent in EXPONENTS:
        floor, scale = _linear(x**-exponent, y)
        cost = float(_huber(np.log((floor + scale * x**-exponent) / y)).sum())
        if cost < best:
            best, found = cost, (floor, scale, float(exponent))
    return Law(*found, unit)


def _linear(power: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Floor and scale, both at least 0, of `y` over a power of the FLOPs."""
    weights = 1.0 / y
    floor = scale = 0.0
    for _ in range(10):
        columns = np.stack([np.ones_like(power), power], axis=1) * weights[:, None]
        (floor, scale), *_ = np.linalg.lstsq(columns, y * weights, rcond=None)
        if floor < 0.0:
            floor, scale = 0.0, float((columns[:, 1] @ (y * weights)) / (columns[:, 1] @ columns[:, 1]))
        elif scale < 0.0:
            floor, scale = float((columns[:, 0] @ (y * weights)) / (columns[:, 0] @ columns[:, 0])), 0.0
        residuals = np.abs((floor + scale * power) / y - 1.0)
        weights = np.minimum(1.0, HUBER / np.maximum(residuals, 1e-12)) ** 0.5 / y
    return float(floor), float(scale)


def _huber(residuals: np.ndarray) -> np.ndarray:
    size = np.abs(residuals)
    return np.where(size <= HUBER, size**2 / 2, HUBER * (size - HUBER / 2))


def interval(flops: Sequence[float], losses: Sequence[float], at: float) -> tuple[float, float]:
    """What a run of `at` FLOPs will lose, from and to, with the probability `SHARE`.

    By fits to losses moved by the spread of the residuals, or `NOISE` where that is less (parametric
    bootstrap). It covers the noise of the runs, not a law of another form.
    """
    law = fit(flops, losses)
    residuals = np.log([loss / law.loss(c) for c, loss in zip(flops, losses, strict=True)])
    free = max(1, len(losses) - 3)
    spread = max(NOISE, float(np.sqrt((residuals**2).sum() / free)))
    noise = random.Random(0)
    drawn = sorted(
        fit(flops, [law.loss(c) * (1.0 + noise.gauss(0.0, spread)) for c in flops]).loss(at)
        for _ in range(DRAWS)
    )
    tail = round((1.0 - SHARE) / 2 * DRAWS)
    return drawn[tail], drawn[-1 - tail]
