"""What happens after a step: choosing the number of steps, logging, saving."""

from __future__ import annotations

import time
from typing import Any

import torch

from llmkit.engine.base import StepResult
from llmkit.errors import DisagreementError, RunFault, UserError
from llmkit.kernels.compiler import graph_breaks
from llmkit.loop.budget import Budget, Plan
from llmkit.loop.control import OUT_OF_TIME
from llmkit.loop.run import Run
from llmkit.loop.samples import TellLeftOut
from llmkit.loop.scalars import Scalars
from llmkit.monitor.flops import train_flops_per_token, utilization
from llmkit.monitor.hardware import device_peak, peak_memory_gib


class ChooseSteps:
    """Turns a time budget into `max_steps`, once, and records it.

    The run ends earlier where a source with `max_epochs` does not last so long. budget: None where the number
    of steps is known.
    """

    def __init__(self, budget: Budget | None) -> None:
        self.budget = budget
        self.is_open = budget is not None
        self.plan: Plan | None = None
        self.problem: UserError | None = None

    def wish(self, run: Run) -> int:
        """The number of steps that should hold from now on; 0 = none is known, or it holds already."""
        if self.budget is None:
            return 0
        tokens = run.config.train.global_batch_size * run.config.data.sequence_length
        try:
            self.plan = self.budget.after_step(run.progress.step, tokens)
        except UserError as error:
            self.problem = error
        if self.plan is None and self.problem is None:
            return 0
        self.budget = None
        return OUT_OF_TIME if self.plan is None else self.plan.max_steps

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`. Raises UserError on all ranks where no time is left."""
        if not self.is_open:
            return
        planned = run.agreed.max_steps
        if planned == OUT_OF_TIME:
            raise self.problem or UserError("train.max_minutes is too short on this machine")
        short = run.loader.first_shortage()
        if planned == 0 and (short is None or run.progress.step < short.last_step):
            return
        self.budget, self.is_open = None, False
        ends_by_supply = short is not None and (planned == 0 or short.last_step < planned)
        chosen = short.last_step if short is not None and ends_by_supply else planned
        # Many ranks learn of a plan a step later.
        run.progress.max_steps = run.console.max_steps = max(chosen, run.progress.step)
        if run.mesh.rank > 0:  # which timed its own steps
            return
        timed: dict[str, Any] = self.plan._asdict() if self.plan is not None and planned else {}
        run.events.record("max_steps", **timed | {"max_steps": chosen})
        minutes = f"{run.config.train.max_minutes:g} minutes"
        if short is not None and ends_by_supply:
            limit = f"data.sources.{short.supply.index}.max_epochs is {short.supply.max_epochs}"
            run.console.note(
                f"max_steps = {chosen}: source {short.supply.name} lasts until then ({limit}); "
                f"{minutes} would be {f'{planned} steps' if planned else 'more'}"
            )
        elif self.plan is not None:
            run.console.note(
                f"max_steps = {chosen}: {minutes} at {self.plan.step_seconds:.2f} s a step, "
                f"{self.plan.reserved_seconds:.0f} s kept for the end"
            )


class Log:
    """Writes rows to metrics.jsonl and the console; scalars are read a step late.

    The first step of a process compiles and warms caches: it counts in no mean of times, and the times of
    a row that holds nothing else are null. Also counts skipped updates, and ends the run after too many in a
    row.
    """

    def __init__(self, run: Run) -> None:
        dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
        # The first rank alone writes rows; the others need not measure their CPU.
        self.peak, self.peak_label = device_peak(run.device, dtype) if run.mesh.rank == 0 else (None, "")
        self.flops_per_token = train_flops_per_token(run.shape, run.config.data.sequence_length)
        self._steps = self._computed = 0  # since the last row; without a target nothing is computed
        self._tokens_per_step = run.config.train.global_batch_size * run.config.data.sequence_length
        self._first, self._told = True, False
        self._left_out = TellLeftOut()
        self._pending: tuple[int, int, float, Scalars, dict[str, Any]] | None = None
        if run.engine.model.compiled:
            run.console.note("compiling the model: the first step takes much longer than those after it")

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        self.flush(run)
        step = run.progress.step
        self._steps += 1
        self._computed += result.targets > 0
        timing: dict[str, Any] = {}
        first, self._first = self._first, False
        if first and run.engine.model.compiled and (breaks := graph_breaks()):
            most = max(breaks, key=lambda reason: breaks[reason])
            run.console.note(f"torch.compile could not take {sum(breaks.values())} places, such as: {most}")
        if first:
            run.clock.read()
            self._steps = self._computed = 0
        if step == 1 or step % run.config.monitor.log_every == 0 or run.may_end_here:
            timing = self._timing(run)
        self._pending = step, run.progress.tokens, learning_rate, Scalars(result), timing
        run.console.progress(step)

    def _timing(self, run: Run) -> dict[str, Any]:
        """The columns that are means since the last row; null where no step is to be counted."""
        seconds, waited = run.clock.read()
        steps = self._steps
        rate = self._computed * self._tokens_per_step / seconds if steps else None
        row = {
            "step_seconds": seconds / steps if steps else None,
            "tokens_per_second": rate,
            "data_seconds": waited / steps if steps else None,
            "mfu": rate and utilization(rate, self.flops_per_token, self.peak, run.mesh.world_size),
            "mfu_peak": self.peak_label,
            "peak_memory_gib": peak_memory_gib(run.device),
        }
        self._steps = self._computed = 0
        return row

    def flush(self, run: Run) -> None:
        """Reads the newest step's scalars; after this, everything that happened is on record."""
        if self._pending is None:
            return
        (step, tokens, learning_rate, scalars, timing), self._pending = self._pending, None
        loss, norm, skipped = scalars.read()
        if loss is not None:
            run.progress.add_loss(loss, scalars.targets)
        if timing:
            timing["loss_mean"] = run.progress.take_mean_loss()
            self._left_out.tell(run)
        no_targets = scalars.targets == 0
        if timing or skipped or no_targets:
            row = {
                "step": step,
                "tokens": tokens,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": learning_rate,
                **timing,
                **({"skipped": True} if skipped else {}),
                **({"no_targets": True} if no_targets else {}),
            }
            run.metrics.append(row)
            run.console.row(row)
            if run.metrics.fault and not self._told:
                run.console.note(
                    f"metrics.jsonl cannot be written, its rows wait in memory: {run.metrics.fault}"
                )
            self._told = run.metrics.fault is not None
        progress = run.progress
        progress.no_targets += no_targets
        progress.skipped += skipped
        if not no_targets:  # it neither mends a run of skipped updates nor is one of them
            progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
        limit = run.config.train.max_nonfinite_steps
        if progress.skipped_in_a_row >= limit:
            raise RunFault(
                f"step {step}: the gradient was not finite {limit} times in a row "
                "(train.max_nonfinite_steps); these updates were skipped. The same command goes on from the "
                f"newest checkpoint in {run.folder.checkpoints}. A lower "
                "optimizer.learning_rate often helps; else look for the cause in the data"
            )


class Save:
    """Checkpoints every `checkpoint.every_steps` and `checkpoint.every_minutes`.

    A save that fails is reported and tried again at the next time: training goes on.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self._last = time.monotonic()

    def wish(self, run: Run) -> int:
        """1 where it is time for a checkpoint by the clock; said once."""
        minutes = run.config.checkpoint.every_minutes
        due = bool(minutes) and time.monotonic() - self._last >= 60.0 * minutes
        if due:
            self._last = time.monotonic()
        return int(due)

    def after_step(self, run: Run, result: StepResult, learning_rate: float) -> None:
        """See `Hook.after_step`."""
        every = run.config.checkpoint.every_steps
        if not run.agreed.save and not (every and run.progress.step % every == 0):
            return
        self.log.flush(run)
        self._last = time.monotonic()
        with run.clock.paused():
            try:
                run.save()
            except DisagreementError:
                raise  # no later save could be better
            except RunFault as fault:
                run.events.record("save_failed", step=run.progress.step, reason=str(fault))
                run.console.note(f"NOT SAVED, training goes on: {fault}")
