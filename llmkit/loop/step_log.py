"""The rows of training steps, and the count of updates that were skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llmkit.engine.base import StepResult
from llmkit.errors import RunFault
from llmkit.loop.phases import Phases
from llmkit.loop.recorder import Recorded, Recorder
from llmkit.loop.scalars import Scalars
from llmkit.loop.state import TrainState
from llmkit.monitor.flops import utilization
from llmkit.monitor.hardware import peak_memory_gib
from llmkit.parallel.mesh import Mesh

COLUMNS = (
    "step", "tokens", "loss", "loss_mean", "grad_norm", "learning_rate", "step_seconds", "tokens_per_second",
    "data_seconds", "mfu", "mfu_peak", "peak_memory_gib", "skipped", "no_targets", "eval_loss",
    "eval_bits_per_byte",
)  # fmt: skip
"""Names that numbers recorded by others cannot have."""


@dataclass(frozen=True)
class Speed:
    """What the columns of time are computed from.

    tokens_per_step: of the global batch. flops_per_token: of training, forward and backward. peak: FLOP/s of
    one device, None where unknown; label: where that figure is from.
    """

    tokens_per_step: int
    flops_per_token: float
    peak: float | None = None
    label: str = ""


@dataclass(frozen=True)
class _Step:
    """A step whose scalars are on their way to the host. timing: columns of a row; None: none is due."""

    step: int
    tokens: int
    targets: int
    learning_rate: float
    scalars: Scalars | None
    recorded: Recorded | None
    timing: dict[str, Any] | None


class StepLog:
    """Makes the rows of steps; scalars are read a step late.

    The first step of a process that computes something compiles and warms caches: it counts in no mean of
    times, and the times of a row that holds nothing else are null. Also counts skipped updates, and ends the
    run after too many in a row.

    write: takes each row. max_skipped: skipped updates in a row that end the run. saved_step: that of the
    newest checkpoint, None where there is none.
    """

    def __init__(
        self, state: TrainState, mesh: Mesh, phases: Phases, recorder: Recorder, speed: Speed,
        write: Callable[[dict[str, Any]], None], max_skipped: int, saved_step: Callable[[], int | None],
    ) -> None:  # fmt: skip
        self._state, self._mesh, self._phases, self._recorder = state, mesh, phases, recorder
        self._speed, self._write = speed, write
        self._max_skipped, self._saved_step = max_skipped, saved_step
        self._steps = self._computed = 0  # since the last row; without a target nothing is computed
        self.warmed_up = False
        """Whether a step has computed something: the first one is that which compiles."""
        self._pending: _Step | None = None

    def after_step(self, result: StepResult, learning_rate: float, row_due: bool) -> None:
        """Takes the step that `state` has just counted; writes the row of the one before.

        Raises RunFault where too many updates in a row were skipped. Collective where a row is due.
        """
        self.flush()
        self._steps += 1
        self._computed += result.targets > 0
        if not self.warmed_up:
            self.warmed_up = result.targets > 0
            self._phases.read()
            self._steps = self._computed = 0
        scalars, values = None, []
        if result.targets:  # else there is no loss and no gradient
            for name, extra in result.extras.items():
                self._recorder.record(name, extra / result.targets, "mean")
            values = [result.loss_sum, result.grad_norm, result.skipped]
        recorded = self._recorder.take() if row_due else None
        values += recorded.tensors if recorded else []
        scalars = Scalars(values) if values else None
        timing = self._timing() if row_due else None
        self._pending = _Step(
            self._state.step, self._state.tokens, result.targets, learning_rate, scalars, recorded, timing
        )

    def _timing(self) -> dict[str, Any]:
        """The columns that are means since the last row; null where no step is to be counted."""
        seconds, waited = self._phases.read()
        steps, speed = self._steps, self._speed
        rate = self._computed * speed.tokens_per_step / seconds if steps else None
        row = {
            "step_seconds": seconds / steps if steps else None,
            "tokens_per_second": rate,
            "data_seconds": waited / steps if steps else None,
            "mfu": rate and utilization(rate, speed.flops_per_token, speed.peak, self._mesh.world_size),
            "mfu_peak": speed.label,
            "peak_memory_gib": peak_memory_gib(self._mesh.device),
        }
        self._steps = self._computed = 0
        return row

    def flush(self) -> None:
        """Reads the newest step's scalars; after this, everything that happened is on record."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        values = step.scalars.read() if step.scalars is not None else []
        loss, norm, skipped = None, None, False
        if step.targets:
            loss, norm, skipped = values[0] / step.targets, values[1], values[2] > 0.0
            values = values[3:]
            self._state.add_loss(loss, step.targets)
        row: dict[str, Any] = {"step": step.step, "tokens": step.tokens, "loss": loss, "grad_norm": norm}
        row["learning_rate"] = step.learning_rate
        if step.timing is not None:
            row |= step.timing | {"loss_mean": self._state.take_mean_loss()}
        if skipped:
            row["skipped"] = True
        if not step.targets:
            row["no_targets"] = True
        if step.recorded is not None:
            row |= step.recorded.reduce(values)
        if step.timing is not None or skipped or not step.targets:
            self._write(row)
        self._count(step, skipped)

    def _count(self, step: _Step, skipped: bool) -> None:
        state = self._state
        state.no_targets += not step.targets
        state.skipped += skipped
        if step.targets:  # else it neither mends a run of skipped updates nor is one of them
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
        if state.skipped_in_a_row >= self._max_skipped:
            saved = self._saved_step()
            start = "starts anew, as nothing was saved" if saved is None else f"goes on from step {saved}"
            raise RunFault(
                f"step {step.step}: the gradient was not finite {self._max_skipped} times in a row "
                f"(train.max_nonfinite_steps); these updates were skipped. The same command {start}. A lower "
                "optimizer.learning_rate often helps; else look for the cause in the data"
            )
