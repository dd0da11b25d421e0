"""How often a fleet fails, how often to save for that, and what is lost all the same."""

from __future__ import annotations

import math

LLAMA_3 = (
    "Grattafiori et al. 2024, The Llama 3 herd of models, section 3.3.4: 419 unexpected interruptions in 54 "
    "days on 16,384 H100"
)
DEVICE_HOURS = 16_384 * 54 * 24 / 419
"""Device-hours between two interruptions of a run, by `LLAMA_3`: 50,700."""
RESTART_SECONDS = 600.0
"""From a failure to the next step, which is assumed: the watchdog, the scheduler, reading the checkpoint."""
LARGEST_EXPONENT = 700.0
"""Beyond it e^x is no floating-point number."""
YOUNG = "Young 1974, A first order approximation to the optimum checkpoint interval, CACM 17(9)"
DALY = "Daly 2006, A higher order estimate of the optimum checkpoint interval for restart dumps, FGCS 22(3)"


def seconds_between(device_hours: float, devices: int) -> float:
    """Mean seconds between two interruptions of a run on so many devices, which fail independently."""
    return device_hours * 3600.0 / devices


def young_interval(stall: float, between: float) -> float:
    """Seconds of training between two saves that lose the least time: sqrt(2 d M) (Young 1974).

    stall: seconds that training waits for a save (d). between: seconds between two failures (M).
    """
    return math.sqrt(2.0 * stall * between)


def daly_interval(stall: float, between: float) -> float:
    """The same to a higher order (Daly 2006, equation 37): the failures within a save count, too."""
    if stall >= 2.0 * between:
        return between
    x = stall / (2.0 * between)
    return young_interval(stall, between) * (1.0 + math.sqrt(x) / 3.0 + x / 9.0) - stall


def lost_share(interval: float, stall: float, between: float, restart: float = RESTART_SECONDS) -> float:
    """Share of the time that is spent neither on steps nor kept: saves, steps done again, restarts.

    Of failures at random, M seconds apart, with restarts of R: an interval of t with its save takes
    M e^(R / M) (e^((t + d) / M) - 1) seconds on average (Daly 2006: the cost function of complete time).
    """
    exponent = (interval + stall) / between
    if exponent + restart / between > LARGEST_EXPONENT:
        return 1.0
    return 1.0 - interval / (between * math.exp(restart / between) * math.expm1(exponent))
