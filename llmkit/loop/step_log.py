"""The rows of training steps, and the count of updates that were skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llmkit.engine.base import StepResult
from llmkit.engine.parts import StepParts
from llmkit.errors import RunFault
from llmkit.loop.phases import Phases
from llmkit.loop.recorder import Recorded, Recorder
from llmkit.loop.scalars import Scalars
from llmkit.loop.state import TrainState
from llmkit.loop.step_details import StepDetails, Taken
from llmkit.loop.step_times import Counted, Speed, StepTimes
from llmkit.monitor.hardware import device_peak, peak_memory_gib, reserved_memory_gib
from llmkit.precision import torch_dtype

if TYPE_CHECKING:
    from llmkit.loop.trainer import Trainer

Columns = Callable[[], Mapping[str, Any]]
"""Gives some columns of a row that is due."""


@dataclass(frozen=True)
class _Step:
    """A step whose scalars are on their way to the host.

    taken: what it gives beside loss and norm. parts: None where they do not count, or are not known.
    timing: columns of a row; None: none is due.
    """

    step: int
    tokens: int
    targets: int
    learning_rate: float
    scalars: Scalars | None
    taken: Taken
    parts: StepParts | None
    recorded: Recorded | None
    timing: dict[str, Any] | None


class StepLog:
    """Makes the rows of steps; scalars are read a step late. Also counts skipped updates, and ends the run
    after too many in a row.

    further: each gives columns of a row when one is due. write: takes each row. max_skipped: skipped updates
    in a row that end the run. saved_step: that of the newest checkpoint, None where there is none. blame:
    whose gradients were not finite, in words, and their hosts. limit: seconds that a step may take.
    """

    def __init__(
        self, state: TrainState, device: torch.device, phases: Phases, recorder: Recorder, speed: Speed,
        further: Sequence[Columns], write: Callable[[dict[str, Any]], None],
        max_skipped: int, saved_step: Callable[[], int | None], details: StepDetails,
        blame: Callable[[], tuple[str, list[str]]] = lambda: ("", []),
        limit: float | None = None,
    ) -> None:  # fmt: skip
        self._state, self._device, self._phases, self._recorder = state, device, phases, recorder
        self._further, self._details, self._write = further, details, write
        self._max_skipped, self._saved_step, self._limit = max_skipped, saved_step, limit
        self._blame = blame
        self.speed, self._times = speed, StepTimes(phases, speed)
        self._pending: _Step | None = None

    @property
    def warmed_up(self) -> bool:
        """Whether a step has computed something: the first one is that which compiles."""
        return self._times.warmed_up

    @property
    def counted(self) -> Counted:
        """Sums over the steps that count so far."""
        return self._times.counted

    @property
    def own_seconds(self) -> tuple[float, int]:
        """See `StepTimes.own_seconds`."""
        return self._times.own_seconds

    def after_step(
        self, result: StepResult, learning_rate: float, row_due: bool, causal_flops: float | None = None
    ) -> None:
        """Takes the step that `state` has just counted; writes the row of the one before.

        causal_flops: of a token of its batch, those that causal attention needs; None = not known.
        Raises RunFault where too many updates in a row were skipped. Collective where a row is due.
        """
        self.flush()
        counts = self._times.after_step(result.targets > 0, causal_flops)
        scalars, values = None, []
        if result.targets:  # else there is no loss and no gradient
            for name, extra in result.extras.items():
                self._recorder.record(name, extra / result.targets, "mean")
            values = [result.loss_sum, result.grad_norm, result.skipped]
        taken = self._details.take(result, row_due)
        values += taken.in_row
        recorded = self._recorder.take() if row_due else None
        values += [*(recorded.tensors if recorded else []), *taken.behind_row]
        scalars = Scalars(values) if values else None
        timing = self._timing() if row_due else None
        self._pending = _Step(
            self._state.step, self._state.tokens, result.targets, learning_rate, scalars,
            taken, result.parts if counts else None, recorded, timing,
        )  # fmt: skip

    def _timing(self) -> dict[str, Any]:
        """The columns of time, speed and memory, and those of others."""
        columns = self._times.take()
        columns["peak_memory_gib"] = peak_memory_gib(self._device)
        columns["reserved_memory_gib"] = reserved_memory_gib(self._device)
        for further in self._further:
            columns |= further()
        return columns

    def flush(self) -> None:
        """Reads the newest step's scalars; after this, everything that happened is on record."""
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        values: Iterator[float] = iter(())
        if step.scalars is not None:
            with self._phases.span("step", self._limit):  # a GPU may still be at that step
                values = iter(step.scalars.read())
        if step.parts is not None:
            self._times.add_parts(step.parts.read())
        loss, norm, skipped = None, None, False
        if step.targets:
            loss, norm, skipped = next(values) / step.targets, next(values), next(values) > 0.0
            self._state.add_loss(loss, step.targets)
        self._count(step, skipped)
        row: dict[str, Any] = {"step": step.step, "tokens": step.tokens, "loss": loss, "grad_norm": norm}
        row["learning_rate"] = step.learning_rate
        if step.timing is not None:
            row |= step.timing | self._times.take_parts() | {"loss_mean": self._state.take_mean_loss()}
            row["skipped_total"] = self._state.skipped
        row |= self._details.columns(step.step, step.taken, values)
        if skipped:
            row["skipped"] = True
        if not step.targets:
            row["no_targets"] = True
        if step.recorded is not None:
            row |= step.recorded.reduce([next(values) for _ in step.recorded.tensors])
        if step.timing is not None or skipped or not step.targets:
            self._write(row)
        self._details.after_row(step.step, step.taken, values, loss, norm)
        self._check_skipped(step)

    def _count(self, step: _Step, skipped: bool) -> None:
        state = self._state
        state.no_targets += not step.targets
        state.skipped += skipped
        if step.targets:  # else it neither mends a run of skipped updates nor is one of them
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0

    def _check_skipped(self, step: _Step) -> None:
        if self._state.skipped_in_a_row >= self._max_skipped:
            saved = self._saved_step()
            start = "starts anew, as nothing was saved" if saved is None else f"goes on from step {saved}"
            whose, hosts = self._blame()
            advice = "A lower optimizer.learning_rate often helps; else look for the cause in the data"
            if whose:
                advice = f"The last one was not finite {whose} alone: leave that node out if that stays so"
            raise RunFault(
                f"step {step.step}: the gradient was not finite {self._max_skipped} times in a row "
                "(train.max_nonfinite_steps); these updates were skipped. "
                f"The same command {start}. {advice}",
                hosts,
            )


def make_step_log(t: Trainer, recorder: Recorder, details: StepDetails) -> StepLog:
    """The log of a trainer's steps. Rank 0, which alone writes rows, measures the peak of its device."""
    peak, label = None, ""
    if t.mesh.rank == 0:
        dtype, fp8 = torch_dtype(t.plan.precision.compute), t.plan.precision.linear == "fp8"
        peak, label = device_peak(t.mesh.device, dtype, fp8)
        if peak is None:
            t.console.note(f"no utilization (MFU) will be given: {label}")
    speed = Speed(t.plan.tokens_per_step, t.work.full, t.work.recomputed, peak, label, t.mesh.world_size)
    return StepLog(
        t.state, t.mesh.device, t.phases, recorder, speed, t.row_columns, t.write_row,
        t.config.train.max_nonfinite_steps, lambda: t.saved_step, details, t.checks.blame, t.step_limit,
    )  # fmt: skip
