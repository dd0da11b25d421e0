"""The columns of a row that tell of time and speed, from the phases since the last row."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.loop.phases import Phases
from llmkit.monitor.flops import utilization


@dataclass(frozen=True)
class Speed:
    """What the columns of speed are computed from.

    tokens_per_step: of the global batch. flops_per_token: of training, forward and backward. recomputed:
    FLOPs beside them, of activation checkpointing. peak: FLOP/s of one device, None where unknown; label:
    where that figure is from. devices: of the whole job.
    """

    tokens_per_step: int
    flops_per_token: float
    recomputed: float = 0.0
    peak: float | None = None
    label: str = ""
    devices: int = 1


@dataclass
class Counted:
    """Sums over the steps that count so far, seconds. parts_steps: those whose parts are known; a step's are
    a step late, and not at all where the engine cannot tell.
    """

    steps: int = 0
    seconds: float = 0.0
    data: float = 0.0
    other: float = 0.0
    parts_steps: int = 0
    communication: float = 0.0
    optimizer: float = 0.0


class StepTimes:
    """Adds up the phases of steps.

    A step that compiles, and the first one that computes something, which warms caches, count in no mean;
    the means of a row that holds nothing else are null. The sums `time/PHASE` hold everything.
    """

    def __init__(self, phases: Phases, speed: Speed) -> None:
        self._phases, self._speed = phases, speed
        self.warmed_up = False
        """Whether a step has computed something."""
        self._since: defaultdict[str, float] = defaultdict(float)
        self._parts: defaultdict[str, float] = defaultdict(float)
        self.counted = Counted()
        self._start_row()

    def _start_row(self) -> None:
        self._since.clear()
        self._steps = self._computed = 0
        self._training = self._waited = 0.0
        self._causal: float | None = 0.0

    def after_step(self, computes: bool, causal: float | None = None) -> bool:
        """A step is over, between two spans; returns whether it is one of `time/step`, not of `time/compile`.

        computes: whether it had targets; else nothing is computed. causal: FLOPs a token that causal
        attention needs for its batch; None = not known.
        """
        since = self._phases.read()
        for name, seconds in since.items():
            self._since[name] += seconds
        if not self.warmed_up:
            self.warmed_up = computes
        elif not since["compile"]:
            self._steps += 1
            self._computed += computes
            training = since["data"] + since["step"] + since["other"]
            self._training += training
            self.counted.steps += 1
            self.counted.seconds += training
            self.counted.data += since["data"]
            self.counted.other += since["other"]
            self._waited += since["data"]
            if computes:
                self._causal = None if causal is None or self._causal is None else self._causal + causal
        return not since["compile"]

    def add_parts(self, seconds: Mapping[str, float]) -> None:
        """Adds the parts of a step (`StepParts`), which are known a step late."""
        for name, each in seconds.items():
            self._parts[name] += each
        self.counted.parts_steps += bool(seconds)
        self.counted.communication += seconds.get("communication", 0.0)
        self.counted.optimizer += seconds.get("optimizer", 0.0)

    @property
    def own_seconds(self) -> tuple[float, int]:
        """Seconds of the counted steps so far, without communication that was waited for; their number."""
        return self.counted.seconds - self.counted.communication, self.counted.steps

    def take_parts(self) -> dict[str, float | None]:
        """The columns of parts, of all steps up to that of the row."""
        names = ["optimizer", "communication"] if self._speed.devices > 1 else ["optimizer"]
        columns = {f"time/{name}": self._parts.get(name) for name in names}
        self._parts.clear()
        return columns

    def take(self) -> dict[str, Any]:
        """The columns of a row that is due after this step."""
        steps, speed, causal = self._steps, self._speed, None
        rate = self._computed * speed.tokens_per_step / self._training if steps else None
        if self._causal is not None and self._computed:
            causal = self._causal / self._computed
        columns = {
            "step_seconds": self._training / steps if steps else None,
            "tokens_per_second": rate,
            "tokens_per_second_per_device": rate and rate / speed.devices,
            "data_seconds": self._waited / steps if steps else None,
            "mfu": self._share(rate, speed.flops_per_token),
            "mfu_causal": self._share(rate, causal),
            "mfu_peak": speed.label,
            **{f"time/{name}": round(seconds, 6) for name, seconds in self._since.items()},
        }
        if speed.recomputed:
            columns["hfu"] = self._share(rate, speed.flops_per_token + speed.recomputed)
        self._start_row()
        return columns

    def _share(self, rate: float | None, flops_per_token: float | None) -> float | None:
        """Of what all devices could do, at so many tokens a second; None where something is not known."""
        if rate is None or flops_per_token is None:
            return None
        return utilization(rate, flops_per_token, self._speed.peak, self._speed.devices)
