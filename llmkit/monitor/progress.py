"""How far a run is, as its rows and events tell: what the live view shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from llmkit.monitor.event_text import event_text
from llmkit.monitor.events import event_time
from llmkit.monitor.sparkline import Curve

WALL_ROWS = 200
"""Rows over which the speed with evaluations and saves is taken."""
LARGEST = 1e300
"""What is beyond it, or no number at all (Python reads NaN in JSON), is shown as not finite."""

ENDS = ("stop", "done", "fault")
"""Events that end a start, after a step that may have no row."""


class Evaluation(NamedTuple):
    """A held-out loss. loss: None = not finite. accuracy: share of the pairs whose better answer is known."""

    step: int
    loss: float | None
    bits_per_byte: float | None = None
    accuracy: float | None = None


class Happened(NamedTuple):
    """An event in words. at: None where its time is not known."""

    text: str
    at: datetime | None


class Progress:
    """Takes the rows of metrics.jsonl and the events of events.jsonl in their order.

    name: of the run. max_steps: None = not known yet. save_every, evaluate_every: steps between saves and
    evaluations, 0 = never. currency: of the costs in the rows. save_minutes: between saves by the clock, 0 =
    none.
    """

    def __init__(
        self, name: str = "", max_steps: int | None = None, save_every: int = 0, evaluate_every: int = 0,
        currency: str = "", save_minutes: float = 0.0,
    ) -> None:  # fmt: skip
        self.name, self.max_steps = name, max_steps
        self.save_every, self.evaluate_every, self.currency = save_every, evaluate_every, currency
        self.save_minutes = save_minutes
        self._timed_from: Mapping[str, Any] | None = None  # the event from which the clock of saves counts
        self.step = 0
        self.row: dict[str, Any] = {}
        """The newest row of a step."""
        self.step_seconds: float | None = None
        """Of a step, as the newest row with that figure says."""
        self._wall: deque[tuple[int, float]] = deque(maxlen=WALL_ROWS)  # (step, elapsed) of the newest rows
        self._restarts: object = None
        self.losses = Curve()
        self.last_evaluation: Evaluation | None = None
        self.best_evaluation: Evaluation | None = None
        self._event: Mapping[str, Any] | None = None

    def take(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl; what is none is left out, and what is no number in one."""
        row = {
            name: value if value is None or abs(value) <= LARGEST else None
            for name, value in row.items()
            if value is None or isinstance(value, int | float)
        }
        step = row.get("step")
        if not isinstance(step, int):
            return
        self.step = max(self.step, step)
        if "eval_loss" in row:
            others = row.get("eval_bits_per_byte"), row.get("eval_rewards/accuracy")
            self._take_evaluation(Evaluation(step, row["eval_loss"], *others))
        elif "loss" in row:
            self.row = row
            if row.get("step_seconds") is not None:
                self.step_seconds = row["step_seconds"]
            self._take_wall_time(row)
            if (loss := shown_loss(row)) is not None:
                self.losses.add(step, loss)

    def _take_wall_time(self, row: Mapping[str, Any]) -> None:
        if row.get("restarts") != self._restarts:  # the time in between belongs to no step
            self._wall.clear()
            self._restarts = row.get("restarts")
        if row.get("elapsed_seconds") is not None:
            self._wall.append((row["step"], row["elapsed_seconds"]))

    def _take_evaluation(self, found: Evaluation) -> None:
        self.last_evaluation = found
        best = self.best_evaluation
        if found.loss is not None and (best is None or best.loss is None or found.loss < best.loss):
            self.best_evaluation = found

    def take_event(self, event: Mapping[str, Any]) -> None:
        """An event of events.jsonl. Each start begins with the number of steps of its settings."""
        if event.get("event") in ("start", "resume"):
            self.max_steps = None
            if isinstance(event.get("step"), int):  # steps behind the checkpoint are done again
                self.step = event["step"]
        elif event.get("event") == "rollback" and isinstance(event.get("to_step"), int):
            self.step = event["to_step"]
            self._wall.clear()
        elif event.get("event") in ENDS and isinstance(event.get("step"), int):
            self.step = max(self.step, event["step"])
        elif event.get("event") == "max_steps" and isinstance(event.get("max_steps"), int):
            self.max_steps = event["max_steps"]
        if event.get("event") in ("start", "resume", "save"):
            self._timed_from = event
        self._event = event

    @property
    def last_event(self) -> Happened | None:
        """What happened last."""
        if self._event is None:
            return None
        return Happened(event_text(self._event), event_time(self._event))

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step is done, evaluations and saves on the way included; None = not known.

        As fast as the newest rows came, where they say when; else by steps alone.
        """
        if self.max_steps is None:
            return None
        if len(self._wall) > 1 and self._wall[-1][0] > self._wall[0][0]:
            (first, begun), (last, ended) = self._wall[0], self._wall[-1]
            return max(0, self.max_steps - self.step) * max(0.0, ended - begun) / (last - first)
        return self.seconds_until(self.max_steps)

    def seconds_until(self, step: int) -> float | None:
        """Seconds of the steps until this one is done."""
        return None if self.step_seconds is None else max(0, step - self.step) * self.step_seconds

    def seconds_until_save(self, now: datetime) -> float | None:
        """Seconds until the next save, by steps or by the clock; None where none is known to come."""
        step = self.next_after(self.save_every)
        by_steps = None if step is None else self.seconds_until(step)
        if step is not None and by_steps is None:
            return None
        begun = event_time(self._timed_from) if self._timed_from and self.save_minutes else None
        if begun is None:
            return by_steps
        by_clock = max(0.0, 60.0 * self.save_minutes - (now - begun).total_seconds())
        return by_clock if by_steps is None else min(by_steps, by_clock)

    def next_after(self, every: int) -> int | None:
        """The next step that `every` divides; None where there is none before the end."""
        if every <= 0:
            return None
        step = self.step - self.step % every + every
        return step if self.max_steps is None or step <= self.max_steps else None


def shown_loss(row: Mapping[str, Any]) -> float | None:
    """The loss of a row for people: that of one step is of a few sequences, and noisy."""
    mean = row.get("loss_mean")
    loss: float | None = row.get("loss") if mean is None else mean
    return loss
