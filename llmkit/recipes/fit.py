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
EXPONENTS = np.geomspace(0.01, 1.0, 200)
"""Among which alpha is found; published ones are 0.05 (Kaplan et al. 2020) to 0.3."""
NOISE = 0.003
"""Relative standard deviation of a run's loss that is assumed at least: that of its seeds, about."""
REWEIGHTINGS = 10
"""Rounds of least squares for a Huber loss."""
DRAWS, SHARE = 100, 0.9
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
    powers = (np.asarray(flops) / unit) ** -EXPONENTS[:, None]
    y = np.asarray(losses)
    floors, scales = _linear(powers, y)
    costs = _huber(np.log((floors[:, None] + scales[:, None] * powers) / y)).sum(axis=1)
    best = int(costs.argmin())
    return Law(float(floors[best]), float(scales[best]), float(EXPONENTS[best]), unit)


def _linear(powers: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Floor and scale, both at least 0, of `y` (runs) over powers of the FLOPs (exponents, runs)."""
    weights = np.broadcast_to(y**-2, powers.shape)
    for _ in range(REWEIGHTINGS):
        ones, linear, square = (((weights * powers**k).sum(axis=1)) for k in range(3))
        sums, products = (weights * y).sum(axis=1), (weights * powers * y).sum(axis=1)
        scales = (ones * products - linear * sums) / (ones * square - linear**2)
        floors = (sums - scales * linear) / ones
        floors, scales = np.where(scales < 0.0, sums / ones, floors), np.maximum(scales, 0.0)
        scales, floors = np.where(floors < 0.0, products / square, scales), np.maximum(floors, 0.0)
        residuals = np.abs((floors[:, None] + scales[:, None] * powers) / y - 1.0)
        weights = np.minimum(1.0, HUBER / np.maximum(residuals, 1e-12)) / y**2
    return floors, scales


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
