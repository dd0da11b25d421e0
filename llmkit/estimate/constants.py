"""The numbers of the model of time that were fitted to published runs; all others are measured or assumed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """overhead: of computing, what no formula names (gaps between kernels, clocks below those measured):
    times longer than by the formulas. jitter: share by which a step gets longer per doubling of nodes, as
    each waits for the slowest. source: where they are from.
    """

    overhead: float
    jitter: float
    source: str


FITTED = Constants(1.20, 0.015, "fitted to published runs on H100 (benchmarks/published.py)")
