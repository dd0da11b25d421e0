"""How long each phase of a rank may last before something must be wrong."""

from __future__ import annotations

from collections import deque

LOOKING = 3.0
"""Seconds from a phase that is overdue to the message that says so: to look, and to ask all ranks."""
LEAST = 15.0
"""Seconds within which no hang has to be named."""
FACTOR = 3.0
"""The same in 99th percentiles of steps."""
FLOOR = LEAST - LOOKING
"""Seconds of a step that are never overdue."""
UNKNOWN = 600.0
"""Limit of a step until LEARNED of them were seen."""
LEARNED = 5
WINDOW = 256
EVERY = 16
"""Steps between two computations of the limit, once the first LEARNED of them were seen."""
LONG = 1800.0
"""Seconds of a start, a compilation, an evaluation, a save."""
STOPPED = FLOOR
"""Seconds after which a process that is stopped (SIGSTOP) while others of its run are not is overdue."""
DISK = 120.0
"""Seconds at least, while the kernel has the main thread wait for a disk: file servers stall, and such a
process cannot even be killed."""
PATIENT = ("start", "compile")
"""Phases that may take any time while something is computed: only seconds in which nothing is count."""


class Limits:
    """The limits of the phases of one rank.

    step_seconds: that of a step, where the settings give it; else learned from the steps. data_seconds: after
    which the loader itself gives up. foreign: whether other people's hooks run between steps.
    """

    def __init__(self, step_seconds: float | None, data_seconds: float, foreign: bool) -> None:
        self._fixed, self._data, self._foreign = step_seconds, data_seconds, foreign
        self._seen: deque[float] = deque(maxlen=WINDOW)
        self._count, self._first = 0, True
        self.step = UNKNOWN if step_seconds is None else step_seconds

    def saw_step(self, seconds: float) -> None:
        """A step is over, which took so long with the wait for its data and what followed it.

        The first one, in which libraries are loaded, is not learned from.
        """
        if self._first:
            self._first = False
            return
        self._seen.append(seconds)
        self._count += 1
        due = LEARNED <= self._count < 2 * EVERY or self._count % EVERY == 0
        if due and self._fixed is None:
            self.step = max(LEAST, FACTOR * percentile_99(self._seen)) - LOOKING

    def of(self, phase: str) -> float:
        """Seconds that a phase may last without a sign of life."""
        if phase == "step":
            return self.step
        if phase == "data":
            return max(self.step, self._data + FLOOR)
        if phase == "other":
            return max(self.step, UNKNOWN) if self._foreign else self.step
        return LONG


def percentile_99(seconds: deque[float]) -> float:
    """The value that 99 % of them do not exceed."""
    ordered = sorted(seconds)
    return ordered[-1 - len(ordered) // 100]
